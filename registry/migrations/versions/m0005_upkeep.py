"""Upkeep: audit rows below a checkpoint may go, mirrors are looked at on a schedule, deliveries are found by event.

A release that does not know the checkpoint goes on using the database; its `audit verify` calls a pruned log broken.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from registry.migrations.postgresql import forbid_changes

revision = "0005"
down_revision = "0004"

KEPT = "loraplex_keep_audit"
TRIGGER = "audit_events_no_delete"
COVERED = "coalesce((SELECT {} FROM registry_meta WHERE key = 'audit_checkpoint'), 0)"
MESSAGE = "a row of audit_events is not taken out before a checkpoint covers it"


def upgrade() -> None:
    op.add_column("mirrors", sa.Column("every_seconds", sa.Integer(), nullable=True))
    op.add_column("mirrors", sa.Column("next_sync_at", sa.DateTime(), nullable=True))
    op.add_column("mirrors", sa.Column("checked_at", sa.DateTime(), nullable=True))
    op.add_column("mirrors", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("mirrors", sa.Column("failure", sa.Text(), nullable=True))
    op.create_index("ix_deliveries_event_id", "deliveries", ["event_id"])
    if op.get_bind().dialect.name == "sqlite":
        covered = COVERED.format("json_extract(value, '$.through')")
        op.execute(f"DROP TRIGGER {TRIGGER}")
        op.execute(
            f"CREATE TRIGGER {TRIGGER} BEFORE DELETE ON audit_events WHEN OLD.id > {covered} "
            f"BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END"
        )
    else:
        covered = COVERED.format("CAST(CAST(value AS json) ->> 'through' AS bigint)")
        op.execute(
            f"CREATE OR REPLACE FUNCTION {KEPT}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF OLD.id > {covered} THEN RAISE EXCEPTION '{MESSAGE}' "
            "USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$"
        )
        op.execute(f"DROP TRIGGER {TRIGGER} ON audit_events")
        op.execute(f"CREATE TRIGGER {TRIGGER} BEFORE DELETE ON audit_events FOR EACH ROW EXECUTE FUNCTION {KEPT}()")


def downgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        op.execute(f"DROP TRIGGER {TRIGGER}")
        op.execute(
            f"CREATE TRIGGER {TRIGGER} BEFORE DELETE ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'a row of audit_events never changes'); END"
        )
    else:
        forbid_changes(connection, [("audit_events", "DELETE")])
        op.execute(f"DROP FUNCTION {KEPT}()")
    op.drop_index("ix_deliveries_event_id", "deliveries")
    for column in ("failure", "failures", "checked_at", "next_sync_at", "every_seconds"):
        op.drop_column("mirrors", column)
