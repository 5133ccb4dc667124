"""Lineage, model cards and differences of a registry in process."""

from __future__ import annotations

from registry.blobs import BlobStore
from registry.cards import render_card
from registry.database import Database
from registry.diff import diff_versions
from registry.lineage import DEPTH_LIMIT, Lineage
from registry.lineage_graph import LineageGraph
from registry.local.adapters import LocalAdapters
from registry.local.aliases import LocalAliases
from registry.local.trust import LocalTrust
from registry.names import AdapterRef
from registry.principal import Principal
from registry.version_diff import VersionDiff


class LocalInsight:
    """A part of `Registry`: what a version is, put together from what the other parts know of it."""

    def __init__(
        self, database: Database, blobs: BlobStore, adapters: LocalAdapters, aliases: LocalAliases, trust: LocalTrust
    ) -> None:
        self._blobs = blobs
        self._adapters = adapters
        self._aliases = aliases
        self._trust = trust
        self._graph = LineageGraph(database)

    def card(self, ref: str, principal: Principal) -> str:
        """A version's model card, made from what the registry knows of it: Markdown with YAML front matter."""
        version = self._adapters.resolve(ref, principal=principal)
        return render_card(
            version,
            self._adapters.base(version.base_fingerprint),
            aliases=self._aliases.aliases(version.adapter, principal),
            attestations=self._trust.attestations(f"{version.adapter}@{version.number}", principal),
        )

    def lineage(self, ref: str, principal: Principal, *, depth: int = DEPTH_LIMIT) -> Lineage:
        """What a version was made of, and what was made of it."""
        return self._graph.of(AdapterRef.parse(ref), principal, depth=depth)

    def base_lineage(self, fingerprint: str, principal: Principal) -> Lineage:
        """The versions that stand on a base."""
        return self._graph.of_base(fingerprint, principal)

    def diff(self, before: str, after: str, principal: Principal, *, with_weights: bool = True) -> VersionDiff:
        """How two versions differ: files, config, metrics, shapes and weights."""
        versions = (
            self._adapters.resolve(before, principal=principal),
            self._adapters.resolve(after, principal=principal),
        )
        return diff_versions(self._blobs, *versions, with_weights=with_weights)
