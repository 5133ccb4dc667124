"""The registry of adapters: immutable versions, judged before they are accepted, with aliases, tenants and tokens.

    import registry
    with registry.open("/srv/loraplex/registry") as reg:
        version = reg.resolve("acme/text2sql@prod", principal=registry.Principal.operator())

It never imports torch. The errors are in `registry.errors`.
"""

from registry.aliases import ANY
from registry.base import BaseModule, BaseRecord
from registry.errors import (
    AliasMovedError,
    AuthenticationError,
    BaseMismatchError,
    ConflictError,
    GateError,
    IncompatibleRegistryError,
    IntegrityError,
    InvalidBaseError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RegistryError,
    RejectedAdapterError,
    StorageError,
)
from registry.file_entry import FileEntry, digest_of_files
from registry.names import AdapterName, AdapterRef, Digest
from registry.opening import open_registry as open  # noqa: A004 - `registry.open(...)` is how it is meant to be read
from registry.policies import AliasPolicy, MetricRule
from registry.principal import Principal, Role
from registry.publish import Publication
from registry.reasons import RejectReason
from registry.registry import Registry
from registry.tenants import IssuedToken, Tenant, Token
from registry.version import AdapterSummary, AliasMove, Version, Visibility

__all__ = [
    "ANY",
    "AdapterName",
    "AdapterRef",
    "AdapterSummary",
    "AliasMove",
    "AliasMovedError",
    "AliasPolicy",
    "AuthenticationError",
    "BaseMismatchError",
    "BaseModule",
    "BaseRecord",
    "ConflictError",
    "Digest",
    "FileEntry",
    "GateError",
    "IncompatibleRegistryError",
    "IntegrityError",
    "InvalidBaseError",
    "InvalidNameError",
    "InvalidValueError",
    "IssuedToken",
    "MetricRule",
    "NotFoundError",
    "PermissionDeniedError",
    "Principal",
    "Publication",
    "QuotaExceededError",
    "Registry",
    "RegistryError",
    "RejectReason",
    "RejectedAdapterError",
    "Role",
    "StorageError",
    "Tenant",
    "Token",
    "Version",
    "Visibility",
    "digest_of_files",
    "open",
]
