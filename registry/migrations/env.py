"""Alembic's entry point: migrates over the connection that `registry.database` hands in, in its transaction."""

from __future__ import annotations

from alembic import context

from registry.models import Row

context.configure(connection=context.config.attributes["connection"], target_metadata=Row.metadata)
context.run_migrations()
