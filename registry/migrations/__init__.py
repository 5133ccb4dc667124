"""Alembic migrations of the catalog; they run when a registry is opened."""
