"""The server: an HTTP process that speaks the OpenAI protocol, and an engine process that owns the device."""
