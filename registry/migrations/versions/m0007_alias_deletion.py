"""Aliases can be deleted: a deletion is a move of the alias to no version.

A release that does not know deletions goes on using the database; the history of an alias that was deleted it cannot
show.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TRIGGER = "alias_moves_no_update"


def upgrade() -> None:
    _change(nullable=True)


def downgrade() -> None:
    """Of an alias that was deleted, what was before goes too: it would be one that was moved and is not there."""
    op.execute(
        "DELETE FROM alias_moves WHERE EXISTS (SELECT 1 FROM alias_moves AS deletion "
        "WHERE deletion.adapter_id = alias_moves.adapter_id AND deletion.alias = alias_moves.alias "
        "AND deletion.to_number IS NULL AND deletion.sequence >= alias_moves.sequence)"
    )
    _change(nullable=False)


def _change(*, nullable: bool) -> None:
    """SQLite cannot change a column: the table is written anew there, and its trigger with it."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("alias_moves") as table:
        table.alter_column("to_number", existing_type=sa.Integer(), nullable=nullable)
    if is_sqlite:
        op.execute(
            f"CREATE TRIGGER {TRIGGER} BEFORE UPDATE ON alias_moves "
            "BEGIN SELECT RAISE(ABORT, 'a row of alias_moves never changes'); END"
        )
