"""The registry over HTTP: who is asking, the native REST API, and the application around both faces."""
