"""Lineage, model cards and differences of a registry over HTTP."""

from __future__ import annotations

import msgspec

from registry.lineage import DEPTH_LIMIT, Lineage
from registry.names import AdapterRef
from registry.principal import Principal
from registry.remote.transport import Transport, part
from registry.version_diff import VersionDiff


class _Card(msgspec.Struct):
    markdown: str


class RemoteInsight:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def card(self, ref: str, principal: Principal) -> str:
        """A version's model card, made from what the registry knows of it: Markdown with YAML front matter."""
        params = {"ref": str(AdapterRef.parse(ref))}
        return self._http.get("/card", _Card, principal=principal, params=params).markdown

    def lineage(self, ref: str, principal: Principal, *, depth: int = DEPTH_LIMIT) -> Lineage:
        """What a version was made of, and what was made of it."""
        params = {"ref": str(AdapterRef.parse(ref)), "depth": depth}
        return self._http.get("/lineage", Lineage, principal=principal, params=params)

    def base_lineage(self, fingerprint: str, principal: Principal) -> Lineage:
        """The versions that stand on a base."""
        return self._http.get(f"/bases/{part(fingerprint)}/lineage", Lineage, principal=principal)

    def diff(self, before: str, after: str, principal: Principal, *, with_weights: bool = True) -> VersionDiff:
        """How two versions differ: files, config, metrics, shapes and weights."""
        refs = {"before": str(AdapterRef.parse(before)), "after": str(AdapterRef.parse(after))}
        params = refs | {"weights": "true" if with_weights else "false"}
        return self._http.get("/diff", VersionDiff, principal=principal, params=params)
