"""A registry over HTTP, by subject. `registry.client.RemoteRegistry` puts the parts together."""
