"""What a migration does on PostgreSQL only. Both steps may be repeated: a migration that adds a table calls them again.

Names sort by their bytes, as on SQLite and as Python sorts them, whatever the locale of the database; an index over
them also serves prefixes. And rows that never change are protected by triggers, as on SQLite.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

FORBID = "loraplex_forbid_change"


def sort_by_bytes(connection: sa.Connection) -> None:
    """Give every column of bounded text the collation "C"."""
    query = sa.text(
        "SELECT table_name, column_name, character_maximum_length FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND data_type = 'character varying' "
        "AND collation_name IS DISTINCT FROM 'C' AND table_name <> 'alembic_version'"
    )
    for table, column, characters in connection.execute(query).all():
        connection.execute(
            sa.text(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE varchar({characters}) COLLATE "C"')
        )


def forbid_changes(connection: sa.Connection, changes: Iterable[tuple[str, str]]) -> None:
    """Refuse the change (UPDATE or DELETE) to rows of the table, whoever writes to it."""
    connection.execute(
        sa.text(
            f"CREATE OR REPLACE FUNCTION {FORBID}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'a row of % never changes', TG_TABLE_NAME "
            "USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
    )
    for table, change in changes:
        trigger = f"{table}_no_{change.lower()}"
        connection.execute(sa.text(f"DROP TRIGGER IF EXISTS {trigger} ON {table}"))
        connection.execute(
            sa.text(f"CREATE TRIGGER {trigger} BEFORE {change} ON {table} FOR EACH ROW EXECUTE FUNCTION {FORBID}()")
        )
