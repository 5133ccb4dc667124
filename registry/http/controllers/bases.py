"""Bases: the quantized models that adapters are judged against. They are for all tenants; the operator adds them."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, Request, get, post
from litestar.params import JSONBody, PathParameter

from registry.base import BaseRecord
from registry.http.service import caller_of, registry_of
from registry.names import SHA256_DIGITS

BASE_BYTES = 64_000_000
FingerprintPart = Annotated[
    str, PathParameter(max_length=SHA256_DIGITS, description="The fingerprint, or the digits that it begins with.")
]


class BaseController(Controller):
    """Registered bases."""

    path = "/bases"
    tags = ("bases",)

    @get(sync_to_thread=True)
    def list_bases(self, request: Request[Any, Any, Any]) -> list[BaseRecord]:
        """Every registered base, oldest first."""
        return registry_of(request).bases()

    @post(sync_to_thread=True, request_max_body_size=BASE_BYTES)
    def register_base(self, request: Request[Any, Any, Any], data: JSONBody[dict[str, Any]]) -> BaseRecord:
        """Register a base from its base.json; doing it again changes nothing. A new one is the operator's to add."""
        return registry_of(request).register_base(data, principal=caller_of(request))

    @get("/{fingerprint:str}", sync_to_thread=True)
    def show_base(self, request: Request[Any, Any, Any], fingerprint: FingerprintPart) -> BaseRecord:
        """One base."""
        return registry_of(request).base(fingerprint)
