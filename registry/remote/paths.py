"""Paths of the REST API, made from names that the grammar has accepted."""

from __future__ import annotations

from registry.errors import InvalidNameError
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.remote.transport import part


def adapter_path(name: str) -> str:
    """The path of an adapter. Raises InvalidNameError."""
    parsed = AdapterName.parse(name)
    return f"/adapters/{part(parsed.tenant)}/{part(parsed.name)}"


def alias_path(name: str, alias: str) -> str:
    """The path of an adapter's alias. Raises InvalidNameError."""
    return f"{adapter_path(name)}/aliases/{part(parse_alias(alias))}"


def reference_of(ref: str) -> AdapterRef:
    """A reference that names its adapter, as every path does. Raises InvalidNameError."""
    parsed = AdapterRef.parse(ref)
    if parsed.adapter is None:
        raise InvalidNameError("a version", ref, "name the adapter too, such as acme/text2sql@3")
    return parsed


def version_path(ref: str) -> str:
    """The path of a version. Raises InvalidNameError for a bare name, which no path can say."""
    parsed = reference_of(ref)
    if parsed.is_bare:
        raise InvalidNameError("a version", ref, "name the version too, such as acme/text2sql@3")
    selector = str(parsed).partition("@")[2]
    return f"{adapter_path(str(parsed.adapter))}/versions/{part(selector)}"
