"""The routes of the REST API: one file per subject, each with one controller. `registry/http/rest.py` lists them all.

The pattern: a method is one call of the registry, in a thread, with the caller of the request; a body is a msgspec
struct that refuses unknown fields and bounds every value; an answer is the registry's own value. Rights are decided in
the registry, errors are answered by `registry/http/errors.py`.
"""
