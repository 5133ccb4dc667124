from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import registry
from registry.errors import InvalidNameError, InvalidValueError, NotFoundError
from registry.lineage import DEPTH_LIMIT, Lineage, NodeKind, Relation
from registry.lineage_graph import _Walk
from registry.models import VersionRow
from tests.registry.adapter_folders import FINGERPRINT, manifest_document

OPERATOR = registry.Principal.operator()
Make = Callable[..., Path]
Child = Callable[..., registry.Version]


@pytest.fixture
def child(reg: registry.Registry, make_adapter: Make) -> Child:
    """Publishes a version that was trained from another one."""
    seeds = iter(range(1, 1000))

    def publish(name: str, parent: registry.Version | str | None = None, **options: Any) -> registry.Version:
        digest = parent.digest if isinstance(parent, registry.Version) else parent
        folder = make_adapter(seed=next(seeds), manifest=manifest_document(parent=digest))
        return reg.publish(folder, name, principal=OPERATOR, **options)

    return publish


def names_of(graph: Lineage) -> set[str]:
    return {name for node in graph.nodes if node.kind is NodeKind.VERSION for name in node.names}


def parents_of(graph: Lineage) -> set[tuple[str, str]]:
    names = {node.node_id: node.names[0] for node in graph.nodes if node.kind is NodeKind.VERSION}
    edges = [edge for edge in graph.edges if edge.relation is Relation.PARENT]
    return {(names[edge.source], names[edge.target]) for edge in edges}


def reader_of(reg: registry.Registry, tenant: str) -> registry.Principal:
    if tenant not in [known.name for known in reg.list_tenants()]:
        reg.create_tenant(tenant)
    return reg.authenticate(reg.create_token(tenant, "reader").secret)


def test_ancestors_and_descendants(reg: registry.Registry, child: Child) -> None:
    first = child("acme/a")
    second = child("acme/a", first)
    child("acme/b", second)
    child("acme/c", second)
    child("acme/a", first)  # a sibling is neither above nor below version 2
    graph = reg.lineage("acme/a@2", OPERATOR)
    assert graph.root == second.digest
    assert names_of(graph) == {"acme/a@1", "acme/a@2", "acme/b@1", "acme/c@1"}
    assert parents_of(graph) == {("acme/a@2", "acme/a@1"), ("acme/b@1", "acme/a@2"), ("acme/c@1", "acme/a@2")}
    assert not graph.is_truncated


def test_bases_and_data_are_nodes(reg: registry.Registry, child: Child) -> None:
    version = child("acme/a")
    graph = reg.lineage("acme/a", OPERATOR)
    kinds = {node.kind: node for node in graph.nodes}
    assert kinds[NodeKind.BASE].node_id == FINGERPRINT
    assert kinds[NodeKind.BASE].names == ("embedded",)
    assert kinds[NodeKind.DATA].node_id == f"sha256:{'1' * 64}"
    assert {(edge.source, edge.target, edge.relation) for edge in graph.edges} == {
        (version.digest, FINGERPRINT, Relation.BASE),
        (version.digest, f"sha256:{'1' * 64}", Relation.DATA),
    }
    facts = kinds[NodeKind.VERSION].facts
    assert facts["metrics"]["exact_match"] == 0.94
    assert facts["run"] == {"method": "qlora", "seed": 7, "steps": 120}
    assert facts["code"] == {"torch": "2.13.0"}


def test_one_content_is_one_node_with_all_its_readable_names(
    reg: registry.Registry, child: Child, make_adapter: Make
) -> None:
    version = child("acme/a")
    folder = make_adapter(seed=1, manifest=manifest_document(parent=None))
    assert reg.publish(folder, "globex/copy", principal=OPERATOR).digest == version.digest
    assert names_of(reg.lineage("acme/a", OPERATOR)) == {"acme/a@1", "globex/copy@1"}
    assert names_of(reg.lineage("acme/a", reader_of(reg, "acme"))) == {"acme/a@1"}


def test_what_a_caller_may_not_read_is_not_there_nor_what_hangs_on_it(reg: registry.Registry, child: Child) -> None:
    first = child("acme/first")
    secret = child("globex/secret", first)
    last = child("acme/last", secret)
    child("globex/spy", last)
    acme = reader_of(reg, "acme")
    graph = reg.lineage("acme/last", acme)
    assert names_of(graph) == {"acme/last@1"}
    assert all(edge.relation is not Relation.PARENT for edge in graph.edges)
    assert names_of(reg.lineage("acme/first", acme)) == {"acme/first@1"}
    assert names_of(reg.lineage("acme/first", OPERATOR)) == {
        "acme/first@1",
        "globex/secret@1",
        "acme/last@1",
        "globex/spy@1",
    }
    orphan = child("acme/orphan", f"sha256:{'9' * 64}")
    missing = [node.facts for node in reg.lineage("acme/orphan", acme).nodes if node.node_id == orphan.digest]
    hidden = [node.facts for node in graph.nodes if node.node_id == last.digest]
    assert missing[0].keys() == hidden[0].keys(), "a hidden parent and a missing one look alike"


def test_public_relatives_are_seen(reg: registry.Registry, child: Child) -> None:
    parent = child("globex/open", visibility="public")
    child("acme/mine", parent)
    assert names_of(reg.lineage("acme/mine", reader_of(reg, "acme"))) == {"acme/mine@1", "globex/open@1"}
    assert names_of(reg.lineage("globex/open", reader_of(reg, "globex"))) == {"globex/open@1"}


def test_depth_is_bounded(reg: registry.Registry, child: Child) -> None:
    version = None
    for _ in range(6):
        version = child("acme/a", version)
    graph = reg.lineage("acme/a@3", OPERATOR, depth=1)
    assert names_of(graph) == {"acme/a@2", "acme/a@3", "acme/a@4"}
    assert graph.is_truncated
    exact = reg.lineage("acme/a@4", OPERATOR, depth=3)
    assert len(names_of(exact)) == 6
    assert not exact.is_truncated
    assert names_of(reg.lineage("acme/a@3", OPERATOR, depth=0)) == {"acme/a@3"}
    for depth in (-1, DEPTH_LIMIT + 1):
        with pytest.raises(InvalidValueError):
            reg.lineage("acme/a", OPERATOR, depth=depth)


def test_size_is_bounded(reg: registry.Registry, child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.lineage_graph.NODES_LIMIT", 4)
    first = child("acme/a")
    for _ in range(5):
        child("acme/b", first)
    graph = reg.lineage("acme/a", OPERATOR)
    assert len(names_of(graph)) == 4
    assert graph.is_truncated


def test_a_manifest_that_names_itself_in_a_circle_ends(reg: registry.Registry, child: Child) -> None:
    """Digests cannot form a circle; the walk would end all the same."""
    first = child("acme/a")
    second = child("acme/a", first)
    with reg._database.reading() as session:
        walk = _Walk(session, OPERATOR)
        walk.enter(VersionRow.digest.in_([first.digest]))
        walk._versions[first.digest].facts["parent"] = second.digest
        walk.up([first.digest], DEPTH_LIMIT)
        walk.down([first.digest], DEPTH_LIMIT)
        assert len(walk.graph(first.digest).nodes) == 4


def test_the_versions_of_a_base(reg: registry.Registry, child: Child) -> None:
    child("acme/a")
    child("globex/b")
    graph = reg.base_lineage(FINGERPRINT[:12], OPERATOR)
    assert graph.root == FINGERPRINT
    assert names_of(graph) == {"acme/a@1", "globex/b@1"}
    assert names_of(reg.base_lineage(FINGERPRINT, reader_of(reg, "acme"))) == {"acme/a@1"}
    with pytest.raises(NotFoundError):
        reg.base_lineage("ff" * 32, OPERATOR)
    for text in ("", "ab", "zz" * 32, "%" * 8):
        with pytest.raises(InvalidNameError):
            reg.base_lineage(text, OPERATOR)


def test_a_base_without_versions_is_one_node(reg: registry.Registry) -> None:
    graph = reg.base_lineage(FINGERPRINT, OPERATOR)
    assert [(node.kind, node.names) for node in graph.nodes] == [(NodeKind.BASE, ("embedded",))]
