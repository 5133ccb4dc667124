"""The engine: one synchronous loop that owns the device. Knows no web, no registry, no event loop."""
