"""The demo: three generated tasks, an adapter for each, one server for all."""
