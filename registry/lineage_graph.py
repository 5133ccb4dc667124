"""Lineage: what an adapter was trained from, on which base and data, what was trained from it, and which mixtures it is
an expert of.

A node is content: a version by its digest, with every name under which the caller may read it; a base by its
fingerprint; data by their digest. What the caller may not read is not there, and neither is anything that hangs on it
alone. The graph is bounded; `is_truncated` says where something was left out for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, or_, select
from sqlalchemy.orm import Session

from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, InvalidValueError, NotFoundError
from registry.lineage import BASE_DIGITS_MIN, DEPTH_LIMIT, Lineage, LineageEdge, LineageNode, NodeKind, Relation
from registry.lookup import find_version, is_readable
from registry.models import AdapterRow, BaseRow, TenantRow, VersionExpertRow, VersionRow
from registry.names import AdapterRef
from registry.principal import Principal

NODES_LIMIT = 500
NAMES_LIMIT = 8
FIGURES_LIMIT = 32
MANIFEST_CHARACTERS = 200_000
"""A manifest that is larger is not read for its facts: hundreds of them may be asked for at once."""
MESSAGE_CHARACTERS = 200


class LineageGraph:
    """Reads graphs. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, ref: AdapterRef, principal: Principal, *, depth: int = DEPTH_LIMIT) -> Lineage:
        """Ancestors and descendants of a version, with their bases and data. Raises NotFoundError."""
        if not 0 <= depth <= DEPTH_LIMIT:
            raise InvalidValueError("depth", f"it is 0 to {DEPTH_LIMIT}")
        with self._database.reading() as session:
            version, _, _ = find_version(session, ref, principal)
            walk = _Walk(session, principal)
            walk.enter(VersionRow.digest.in_([version.digest]))
            walk.up([version.digest], depth)
            walk.down([version.digest], depth)
            return walk.graph(version.digest)

    def of_base(self, fingerprint: str, principal: Principal) -> Lineage:
        """The versions that stand on a base, newest first. Raises InvalidNameError, NotFoundError, ConflictError."""
        if len(fingerprint) < BASE_DIGITS_MIN or fingerprint.strip("0123456789abcdef"):
            raise InvalidNameError(
                "a base fingerprint", fingerprint, f"it has {BASE_DIGITS_MIN} to 64 digits 0-9 and a-f"
            )
        with self._database.reading() as session:
            query = select(BaseRow.fingerprint).where(BaseRow.fingerprint.startswith(fingerprint)).limit(2)
            found = session.scalars(query).all()
            if not found:
                raise NotFoundError("base", fingerprint, "List them with `loraplex base ls`.")
            if len(found) > 1:
                raise ConflictError(f"Several bases begin with {fingerprint!r}. Give more digits.")
            walk = _Walk(session, principal)
            walk.enter(VersionRow.base_fingerprint == found[0])
            return walk.graph(found[0], [found[0]])


class _Walk:
    """One graph on its way. Owned by its caller; `_versions` are the nodes so far, by digest."""

    def __init__(self, session: Session, principal: Principal) -> None:
        self._session = session
        self._principal = principal
        self._versions: dict[str, LineageNode] = {}
        self._is_truncated = False

    def enter(self, condition: ColumnElement[bool]) -> list[str]:
        """Add the readable versions of which this holds; returns the digests that are new."""
        query = (
            select(VersionRow.digest, VersionRow.number, VersionRow.base_fingerprint, VersionRow.base_verified)
            .add_columns(VersionRow.rank, VersionRow.adapter_bytes, VersionRow.parent_digest, VersionRow.data_digest)
            .add_columns(VersionRow.created_at, VersionRow.message, AdapterRow.name, TenantRow.name.label("tenant"))
            .add_columns(VersionRow.id)
            .add_columns(
                case((func.length(VersionRow.manifest) <= MANIFEST_CHARACTERS, VersionRow.manifest), else_=None)
            )
            .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
            .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
            .where(is_readable(self._principal), condition)
            .order_by(VersionRow.id.desc())
            .limit(NODES_LIMIT + 1)
        )
        rows = self._session.execute(query).all()
        self._is_truncated |= len(rows) > NODES_LIMIT
        new = []
        experts = self._experts_of([row.id for row in rows[:NODES_LIMIT]])
        for row in rows[:NODES_LIMIT]:
            name = f"{row.tenant}/{row.name}@{row.number}"
            known = self._versions.get(row.digest)
            if known is not None:
                self._versions[row.digest] = _with_name(known, name)
            elif len(self._versions) >= NODES_LIMIT:
                self._is_truncated = True
            else:
                facts = _facts(row, row[-1])
                if row.id in experts:
                    facts["experts"] = experts[row.id]
                self._versions[row.digest] = LineageNode(row.digest, NodeKind.VERSION, (name,), facts)
                new.append(row.digest)
        return new

    def up(self, digests: Iterable[str], depth: int) -> None:
        """Follow parents and experts, level by level."""
        for level in range(depth + 1):
            parents = {made_of for digest in digests for made_of in _made_of(self._versions[digest])}
            parents -= self._versions.keys()
            if not parents:
                return
            if level == depth:
                self._is_truncated = True
                return
            digests = self.enter(VersionRow.digest.in_(sorted(parents)))

    def down(self, digests: Iterable[str], depth: int) -> None:
        """Follow children and mixtures, level by level; the bound on nodes bounds the breadth."""
        for _ in range(depth):
            digests = list(digests)
            if not digests:
                return
            digests = self.enter(_is_made_of(digests))
        if digests := list(digests):
            self._is_truncated |= bool(self._has_children(digests))

    def graph(self, root: str, bases: Iterable[str] = ()) -> Lineage:
        """What was collected, with the bases and data of every version."""
        edges: set[LineageEdge] = set()
        ends: dict[str, LineageNode] = {}
        fingerprints = set(bases)
        for node in self._versions.values():
            if node.facts["parent"] in self._versions:
                edges.add(LineageEdge(node.node_id, node.facts["parent"], Relation.PARENT))
            for expert in node.facts.get("experts", ()):
                if expert in self._versions:
                    edges.add(LineageEdge(node.node_id, expert, Relation.EXPERT))
            fingerprints.add(node.facts["base"])
            edges.add(LineageEdge(node.node_id, node.facts["base"], Relation.BASE))
            if data := node.facts["data"]:
                ends[data] = LineageNode(data, NodeKind.DATA, (), {})
                edges.add(LineageEdge(node.node_id, data, Relation.DATA))
        query = select(BaseRow).where(BaseRow.fingerprint.in_(sorted(fingerprints)))
        for row in self._session.scalars(query):
            revision = json.loads(row.document).get("revision")
            ends[row.fingerprint] = LineageNode(row.fingerprint, NodeKind.BASE, (row.name,), {"revision": revision})
        nodes = (*self._versions.values(), *(ends[node_id] for node_id in sorted(ends)))
        ordered = sorted(edges, key=lambda edge: (edge.source, edge.relation, edge.target))
        return Lineage(root, nodes, tuple(ordered), self._is_truncated)

    def _experts_of(self, version_ids: Sequence[int]) -> dict[int, list[str]]:
        experts: dict[int, list[str]] = {}
        query = select(VersionExpertRow).where(VersionExpertRow.version_id.in_(version_ids))
        for row in self._session.scalars(query.order_by(VersionExpertRow.version_id, VersionExpertRow.place)):
            experts.setdefault(row.version_id, []).append(row.digest)
        return experts

    def _has_children(self, digests: list[str]) -> bool:
        before, was_truncated = dict(self._versions), self._is_truncated
        found = self.enter(_is_made_of(digests))
        self._versions, self._is_truncated = before, was_truncated
        return bool(found)


def _made_of(node: LineageNode) -> set[str]:
    """What a version was trained from or chooses among."""
    return {node.facts["parent"], *node.facts.get("experts", ())} - {None}


def _is_made_of(digests: Sequence[str]) -> ColumnElement[bool]:
    """The condition on versions that were trained from one of these, or are mixtures of it."""
    mixtures = select(VersionExpertRow.version_id).where(VersionExpertRow.digest.in_(digests))
    return or_(VersionRow.parent_digest.in_(digests), VersionRow.id.in_(mixtures))


def _with_name(node: LineageNode, name: str) -> LineageNode:
    if name in node.names or len(node.names) >= NAMES_LIMIT:
        return node
    return LineageNode(node.node_id, node.kind, (*node.names, name), node.facts)


def _facts(row: Any, manifest: str | None) -> dict[str, Any]:
    """What a reader wants to know of a version without opening it."""
    document = {} if manifest is None else json.loads(manifest)
    training = document.get("training") or {}
    created_at: datetime = row.created_at
    return {
        "base": row.base_fingerprint,
        "base_verified": row.base_verified,
        "parent": row.parent_digest,
        "data": row.data_digest,
        "rank": row.rank,
        "adapter_bytes": row.adapter_bytes,
        "published_at": created_at.isoformat(),
        "message": row.message[:MESSAGE_CHARACTERS],
        "metrics": _figures((document.get("metrics") or {}).get("adapter") or {}),
        "run": {name: training[name] for name in ("method", "seed", "steps") if _is_plain(training.get(name))},
        "code": _code(training.get("versions")),
    }


def _figures(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return dict(sorted(metrics.items())[:FIGURES_LIMIT])


def _code(versions: Any) -> dict[str, str]:
    """The versions of what trained it, as far as the manifest says so in a form that can be shown."""
    if not isinstance(versions, dict):
        return {}
    kept = sorted((name, text) for name, text in versions.items() if isinstance(text, str) and len(text) <= 100)
    return {name: text for name, text in kept[:FIGURES_LIMIT] if len(name) <= 100}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 200)
