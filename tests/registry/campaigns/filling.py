"""Fills a registry's database with many versions in seconds: rows in bulk, as publishes and promotions leave them.

The blobs are not there: this is for what reads the catalog alone. Each adapter has the same number of versions, each
version three files, and the alias `prod` points at the last but one. One adapter in ten is public.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import insert, select

from registry.database import Database
from registry.models import AdapterRow, AliasMoveRow, AliasRow, TenantRow, VersionFileRow, VersionRow
from tests.registry.adapter_folders import FINGERPRINT, manifest_document

ROWS_PER_INSERT = 20_000
AT = datetime(2026, 1, 1, tzinfo=UTC)
FILES = {"adapter_config.json": 900, "adapter_model.safetensors": 4 << 20, "loraplex.json": 1_400}


def fill(database: Database, *, tenants: int, adapters: int, versions: int) -> list[str]:
    """Add `adapters` adapters with `versions` versions each, spread over the tenants; their names come back.

    The base must be registered, and the registry otherwise empty.
    """
    names = [f"tenant-{index % tenants:03d}/adapter-{index:05d}" for index in range(adapters)]
    with database.writing() as session:
        session.execute(insert(TenantRow), [_tenant(index) for index in range(tenants)])
        tenant_ids = {name: tenant_id for tenant_id, name in session.execute(select(TenantRow.id, TenantRow.name))}
        session.execute(
            insert(AdapterRow), [_adapter(name, index, tenant_ids, versions) for index, name in enumerate(names)]
        )
        adapter_ids = list(session.scalars(select(AdapterRow.id).order_by(AdapterRow.name)))
        for rows in _batches(_versions(adapter_ids, versions)):
            session.execute(insert(VersionRow), rows)
        found = list(
            session.execute(select(VersionRow.id, VersionRow.adapter_id, VersionRow.number, VersionRow.digest))
        )
        for rows in _batches(_files(found)):
            session.execute(insert(VersionFileRow), rows)
        prod = max(1, versions - 1)
        promoted = [row for row in found if row.number == prod]
        session.execute(insert(AliasRow), [_alias(row.adapter_id, row.id) for row in promoted])
        session.execute(insert(AliasMoveRow), [_move(row.adapter_id, prod) for row in promoted])
    return names


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, ROWS_PER_INSERT)):
        yield batch


def _tenant(index: int) -> dict[str, Any]:
    return {"name": f"tenant-{index:03d}", "created_at": AT, "used_bytes": 0, "used_versions": 0, "policy": "{}"}


def _adapter(name: str, index: int, tenant_ids: dict[str, int], versions: int) -> dict[str, Any]:
    tenant, _, own = name.partition("/")
    visibility = "public" if index % 10 == 0 else "private"
    times = {"created_at": AT, "updated_at": AT}
    return {"tenant_id": tenant_ids[tenant], "name": own, "visibility": visibility, "last_number": versions, **times}


def _versions(adapter_ids: list[int], versions: int) -> Iterator[dict[str, Any]]:
    manifest = json.dumps(manifest_document(), sort_keys=True)
    for adapter_id in adapter_ids:
        for number in range(1, versions + 1):
            yield {
                "adapter_id": adapter_id,
                "number": number,
                "digest": f"sha256:{_hash(f'{adapter_id}-{number}')}",
                "base_fingerprint": FINGERPRINT,
                "base_verified": True,
                "adapter_bytes": sum(FILES.values()),
                "rank": 16,
                "target_modules": '["q_proj", "v_proj"]',
                "manifest": manifest,
                "message": "",
                "created_at": AT,
                "created_by": "operator",
            }


def _files(versions: list[Any]) -> Iterator[dict[str, Any]]:
    for row in versions:
        for path, size in FILES.items():
            yield {"version_id": row.id, "path": path, "size": size, "sha256": _hash(f"{row.digest}{path}")}


def _alias(adapter_id: int, version_id: int) -> dict[str, Any]:
    return {"adapter_id": adapter_id, "name": "prod", "version_id": version_id, "moved_at": AT}


def _move(adapter_id: int, number: int) -> dict[str, Any]:
    facts = {"kind": "promote", "from_number": None, "actor": "operator", "evidence": "", "moved_at": AT}
    return {"adapter_id": adapter_id, "alias": "prod", "sequence": 1, "to_number": number, **facts}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
