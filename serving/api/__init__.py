"""The HTTP routes, and what stands between a request and the engine: tokens, limits, schemas, streams, metrics."""
