"""What points at a version is found by it: deleting one must not walk through every alias there is."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table in ("aliases", "canaries"):
        op.create_index(f"ix_{table}_version_id", table, ["version_id"])


def downgrade() -> None:
    for table in ("aliases", "canaries"):
        op.drop_index(f"ix_{table}_version_id", table)
