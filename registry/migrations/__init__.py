"""Alembic migrations of the catalog; they run when a registry is opened."""

OLDEST_READER = "0003"
"""The oldest schema whose release can go on using a database that has the newest one.

A migration that only adds (tables, columns with a default, indexes) leaves it. One that takes away or changes what the
older release reads or must write raises it to its own number.
"""
