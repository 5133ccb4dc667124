"""Resolving: what a caller wrote becomes one version, once; the version then stays what it is."""

from __future__ import annotations

from registry.catalog import Catalog
from registry.names import AdapterRef
from registry.principal import Principal
from registry.version import Version


def resolve(catalog: Catalog, text: str, *, principal: Principal) -> Version:
    """The version that this reference means now. A bare name is the newest version.

    Raises InvalidNameError, and NotFoundError for what is missing or may not be read.
    """
    return catalog.version(AdapterRef.parse(text), principal)
