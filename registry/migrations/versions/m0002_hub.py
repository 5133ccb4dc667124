"""The registry as a Hub: commits, refs, quotas, policies, events, tombstones, signatures, and a chained audit log.

What was published before becomes one commit a version, and counts in its tenant's quota.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

UNCHANGEABLE = ("commits", "commit_files", "attestations", "events")
"""Rows of these tables are inserted and deleted, never updated, whoever writes."""
LFS_FROM_BYTES = 1_000_000
LFS_SUFFIX = ".safetensors"


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=40), nullable=False),
        sa.Column("adapter", sa.String(length=140), nullable=False),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_tenant"), "events", ["tenant"], unique=False)
    op.create_table(
        "registry_meta",
        sa.Column("key", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_registry_meta")),
    )
    op.create_table(
        "signing_keys",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("public_pem", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("revoked_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_signing_keys_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_signing_keys")),
        sa.UniqueConstraint("tenant_id", "label", name=op.f("uq_signing_keys_tenant_id_label")),
    )
    op.create_table(
        "tenant_blobs",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", sa.DateTime(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_tenant_blobs_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "sha256", name=op.f("pk_tenant_blobs")),
    )
    op.create_index(op.f("ix_tenant_blobs_sha256"), "tenant_blobs", ["sha256"], unique=False)
    op.create_table(
        "tombstones",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("moved_to", sa.String(length=140), nullable=True),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=False),
        sa.Column("reusable_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_tombstones_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "name", "number", name=op.f("pk_tombstones")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False),
        sa.Column("kinds", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("disabled_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_webhooks_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_tenant_id"), "webhooks", ["tenant_id"], unique=False)
    op.create_table(
        "alias_policies",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=40), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("set_by", sa.String(length=80), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_alias_policies_adapter_id")),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name=op.f("pk_alias_policies")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("webhook_id", sa.String(length=40), nullable=False),
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(), nullable=True),
        sa.Column("delivered_at", sa.DateTime(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_deliveries_event_id")),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name=op.f("fk_deliveries_webhook_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(op.f("ix_deliveries_due_at"), "deliveries", ["due_at"], unique=False)
    op.create_index(op.f("ix_deliveries_webhook_id"), "deliveries", ["webhook_id"], unique=False)
    op.create_table(
        "mirrors",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("repository", sa.String(length=200), nullable=False),
        sa.Column("revision", sa.String(length=200), nullable=False),
        sa.Column("commit", sa.String(length=64), nullable=False),
        sa.Column("fetched_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_mirrors_adapter_id")),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_mirrors")),
    )
    op.create_table(
        "retention_rules",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("set_by", sa.String(length=80), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_retention_rules_adapter_id")),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_retention_rules")),
    )
    op.create_table(
        "attestations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_attestations_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attestations")),
    )
    op.create_index(op.f("ix_attestations_version_id"), "attestations", ["version_id"], unique=False)
    op.create_table(
        "canaries",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(length=40), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("permille", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_canaries_adapter_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_canaries_version_id")),
        sa.PrimaryKeyConstraint("adapter_id", "alias", name=op.f("pk_canaries")),
    )
    op.create_table(
        "commits",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=40), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_commits_adapter_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_commits_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commits")),
        sa.UniqueConstraint("adapter_id", "sequence", name=op.f("uq_commits_adapter_id_sequence")),
    )
    op.create_index(op.f("ix_commits_version_id"), "commits", ["version_id"], unique=False)
    op.create_table(
        "leases",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=100), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_leases_version_id")),
        sa.PrimaryKeyConstraint("version_id", "holder", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_expires_at"), "leases", ["expires_at"], unique=False)
    op.create_table(
        "pins",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_pins_version_id")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_pins")),
    )
    op.create_table(
        "commit_files",
        sa.Column("commit_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("git_oid", sa.String(length=40), nullable=True),
        sa.Column("is_lfs", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["commit_id"], ["commits.id"], name=op.f("fk_commit_files_commit_id")),
        sa.PrimaryKeyConstraint("commit_id", "path", name=op.f("pk_commit_files")),
    )
    op.create_index(op.f("ix_commit_files_sha256"), "commit_files", ["sha256"], unique=False)
    op.create_table(
        "refs",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("commit_id", sa.String(length=40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_refs_adapter_id")),
        sa.ForeignKeyConstraint(["commit_id"], ["commits.id"], name=op.f("fk_refs_commit_id")),
        sa.PrimaryKeyConstraint("adapter_id", "kind", "name", name=op.f("pk_refs")),
    )
    op.create_index(op.f("ix_refs_commit_id"), "refs", ["commit_id"], unique=False)
    op.add_column("alias_moves", sa.Column("gate", sa.Text(), nullable=True))
    op.add_column("audit_events", sa.Column("tenant", sa.String(length=40), nullable=True))
    op.add_column("audit_events", sa.Column("previous_hash", sa.String(length=64), nullable=True))
    op.add_column("audit_events", sa.Column("row_hash", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_audit_events_tenant"), "audit_events", ["tenant"], unique=False)
    op.add_column("tenants", sa.Column("quota_bytes", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("quota_versions", sa.Integer(), nullable=True))
    op.add_column("tenants", sa.Column("used_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("tenants", sa.Column("used_versions", sa.Integer(), server_default="0", nullable=False))
    op.add_column("tenants", sa.Column("policy", sa.Text(), server_default="{}", nullable=False))
    op.add_column("tokens", sa.Column("scope", sa.Text(), nullable=True))
    op.add_column("tokens", sa.Column("replaced_by", sa.String(length=40), nullable=True))
    op.add_column("versions", sa.Column("parent_digest", sa.String(length=71), nullable=True))
    op.add_column("versions", sa.Column("data_digest", sa.String(length=71), nullable=True))
    op.add_column("versions", sa.Column("verdict", sa.Text(), nullable=True))
    op.create_index(op.f("ix_versions_data_digest"), "versions", ["data_digest"], unique=False)
    op.create_index(op.f("ix_versions_parent_digest"), "versions", ["parent_digest"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        for table in UNCHANGEABLE:
            op.execute(
                f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
                f"BEGIN SELECT RAISE(ABORT, 'a row of {table} never changes'); END"
            )
    _count_what_tenants_have()
    _commit_what_was_published()


def downgrade() -> None:
    op.drop_index(op.f("ix_versions_parent_digest"), table_name="versions")
    op.drop_index(op.f("ix_versions_data_digest"), table_name="versions")
    op.drop_column("versions", "verdict")
    op.drop_column("versions", "data_digest")
    op.drop_column("versions", "parent_digest")
    op.drop_column("tokens", "replaced_by")
    op.drop_column("tokens", "scope")
    op.drop_column("tenants", "policy")
    op.drop_column("tenants", "used_versions")
    op.drop_column("tenants", "used_bytes")
    op.drop_column("tenants", "quota_versions")
    op.drop_column("tenants", "quota_bytes")
    op.drop_index(op.f("ix_audit_events_tenant"), table_name="audit_events")
    op.drop_column("audit_events", "row_hash")
    op.drop_column("audit_events", "previous_hash")
    op.drop_column("audit_events", "tenant")
    op.drop_column("alias_moves", "gate")
    op.drop_index(op.f("ix_refs_commit_id"), table_name="refs")
    op.drop_table("refs")
    op.drop_index(op.f("ix_commit_files_sha256"), table_name="commit_files")
    op.drop_table("commit_files")
    op.drop_table("pins")
    op.drop_index(op.f("ix_leases_expires_at"), table_name="leases")
    op.drop_table("leases")
    op.drop_index(op.f("ix_commits_version_id"), table_name="commits")
    op.drop_table("commits")
    op.drop_table("canaries")
    op.drop_index(op.f("ix_attestations_version_id"), table_name="attestations")
    op.drop_table("attestations")
    op.drop_table("retention_rules")
    op.drop_table("mirrors")
    op.drop_index(op.f("ix_deliveries_webhook_id"), table_name="deliveries")
    op.drop_index(op.f("ix_deliveries_due_at"), table_name="deliveries")
    op.drop_table("deliveries")
    op.drop_table("alias_policies")
    op.drop_index(op.f("ix_webhooks_tenant_id"), table_name="webhooks")
    op.drop_table("webhooks")
    op.drop_table("tombstones")
    op.drop_index(op.f("ix_tenant_blobs_sha256"), table_name="tenant_blobs")
    op.drop_table("tenant_blobs")
    op.drop_table("signing_keys")
    op.drop_table("registry_meta")
    op.drop_index(op.f("ix_events_tenant"), table_name="events")
    op.drop_table("events")


def _count_what_tenants_have() -> None:
    op.execute(
        "INSERT INTO tenant_blobs (tenant_id, sha256, size, created_at, is_stored) "
        "SELECT adapters.tenant_id, version_files.sha256, max(version_files.size), min(versions.created_at), true "
        "FROM version_files JOIN versions ON versions.id = version_files.version_id "
        "JOIN adapters ON adapters.id = versions.adapter_id GROUP BY adapters.tenant_id, version_files.sha256"
    )
    op.execute(
        "UPDATE tenants SET used_bytes = "
        "(SELECT coalesce(sum(size), 0) FROM tenant_blobs WHERE tenant_id = tenants.id), "
        "used_versions = (SELECT count(*) FROM versions JOIN adapters ON adapters.id = versions.adapter_id "
        "WHERE adapters.tenant_id = tenants.id)"
    )


def _commit_what_was_published() -> None:
    connection = op.get_bind()
    tables = sa.MetaData()
    tables.reflect(connection, only=["adapters", "versions", "version_files", "commits", "commit_files", "refs"])
    versions, files = tables.tables["versions"], tables.tables["version_files"]
    commits, commit_files, refs = (tables.tables[name] for name in ("commits", "commit_files", "refs"))
    heads: dict[int, str] = {}
    query = sa.select(versions).order_by(versions.c.adapter_id, versions.c.number)
    for version in connection.execute(query).all():
        parent = heads.get(version.adapter_id)
        identity = f"{parent}\0{version.adapter_id}\0{version.number}\0{version.digest}"
        commit = hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest()
        heads[version.adapter_id] = commit
        connection.execute(
            commits.insert().values(
                id=commit,
                adapter_id=version.adapter_id,
                sequence=version.number,
                parent_id=parent,
                title=version.message.partition("\n")[0] or f"Version {version.number}",
                message=version.message.partition("\n")[2].strip(),
                author=version.created_by,
                created_at=version.created_at,
                version_id=version.id,
            )
        )
        for file in connection.execute(sa.select(files).where(files.c.version_id == version.id)).all():
            is_lfs = file.path.endswith(LFS_SUFFIX) or file.size >= LFS_FROM_BYTES
            values = {"path": file.path, "size": file.size, "sha256": file.sha256, "is_lfs": is_lfs}
            connection.execute(commit_files.insert().values(commit_id=commit, **values))
    for adapter in connection.execute(sa.select(tables.tables["adapters"])).all():
        if adapter.id in heads:
            connection.execute(
                refs.insert().values(
                    adapter_id=adapter.id,
                    kind="branch",
                    name="main",
                    commit_id=heads[adapter.id],
                    message="",
                    created_at=adapter.created_at,
                )
            )
