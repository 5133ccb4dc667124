"""Mixtures: a version may list other versions as its experts. Who lists a digest is found by it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from registry.migrations.postgresql import forbid_changes, sort_by_bytes

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "version_experts",
        sa.Column("version_id", sa.Integer(), sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("place", sa.Integer(), primary_key=True),
        sa.Column("digest", sa.String(71), nullable=False),
    )
    op.create_index("ix_version_experts_digest", "version_experts", ["digest"])
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        sort_by_bytes(connection)
        forbid_changes(connection, (("version_experts", "UPDATE"),))
    else:
        op.execute(
            "CREATE TRIGGER version_experts_no_update BEFORE UPDATE ON version_experts "
            "BEGIN SELECT RAISE(ABORT, 'a row of version_experts never changes'); END"
        )


def downgrade() -> None:
    op.drop_index("ix_version_experts_digest", "version_experts")
    op.drop_table("version_experts")
