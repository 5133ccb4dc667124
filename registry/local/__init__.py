"""A registry in process, by subject. `registry.registry.Registry` puts the parts together."""
