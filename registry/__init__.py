"""The registry of adapters: immutable versions, judged before they are accepted, with aliases, tenants and tokens.

    import registry
    with registry.open("/srv/loraplex/registry") as reg:
        version = reg.resolve("acme/text2sql@prod", principal=registry.Principal.operator())

It never imports torch. The errors are in `registry.errors`.
"""

from typing import TYPE_CHECKING, Any

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
from registry.expected import ANY
from registry.file_entry import FileEntry, digest_of_files
from registry.names import AdapterName, AdapterRef, Digest
from registry.opening import open_registry as open  # noqa: A004 - `registry.open(...)` is how it is meant to be read
from registry.policies import AliasPolicy, MetricRule
from registry.principal import Principal, Role
from registry.publication import Publication
from registry.reasons import RejectReason
from registry.tenant import IssuedToken, Tenant, Token
from registry.version import AdapterSummary, AliasMove, Version, Visibility

if TYPE_CHECKING:
    from registry.registry import Registry

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


def __getattr__(name: str) -> Any:
    """`Registry` is imported when it is first asked for: it brings the databases along."""
    if name == "Registry":
        from registry.registry import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
