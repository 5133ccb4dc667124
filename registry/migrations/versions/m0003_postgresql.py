"""PostgreSQL: rows that never change are protected there too, and names sort by their bytes."""

from __future__ import annotations

from alembic import op

from registry.migrations.postgresql import forbid_changes, sort_by_bytes

revision = "0003"
down_revision = "0002"

UNCHANGEABLE = (
    ("versions", "UPDATE"),
    ("version_files", "UPDATE"),
    ("alias_moves", "UPDATE"),
    ("audit_events", "UPDATE"),
    ("audit_events", "DELETE"),
    ("commits", "UPDATE"),
    ("commit_files", "UPDATE"),
    ("attestations", "UPDATE"),
    ("events", "UPDATE"),
)
"""What the triggers of 0001 and 0002 forbid on SQLite."""


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        sort_by_bytes(connection)
        forbid_changes(connection, UNCHANGEABLE)


def downgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        for table, change in UNCHANGEABLE:
            op.execute(f"DROP TRIGGER {table}_no_{change.lower()} ON {table}")
