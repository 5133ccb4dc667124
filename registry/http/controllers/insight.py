"""Lineage, model cards and differences of versions."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get
from litestar.params import PathParameter, QueryParameter

from registry.http.controllers.versions import RefQuery
from registry.http.service import caller_of, registry_of
from registry.lineage import DEPTH_LIMIT, Lineage
from registry.names import REFERENCE_CHARACTERS, SHA256_DIGITS
from registry.version_diff import VersionDiff

DepthQuery = Annotated[
    int, QueryParameter(name="depth", ge=0, le=DEPTH_LIMIT, description="Generations upwards and downwards.")
]
BeforeQuery = Annotated[
    str, QueryParameter(name="before", max_length=REFERENCE_CHARACTERS, description="Such as `acme/sql@1`.")
]
AfterQuery = Annotated[
    str, QueryParameter(name="after", max_length=REFERENCE_CHARACTERS, description="Such as `acme/sql@2`.")
]
WeightsQuery = Annotated[bool, QueryParameter(name="weights", description="Whether to compare the weights too.")]
FingerprintPart = Annotated[
    str, PathParameter(max_length=SHA256_DIGITS, description="A base's fingerprint, or the beginning of one.")
]


class Card(msgspec.Struct, frozen=True):
    """A model card."""

    markdown: str


class InsightController(Controller):
    """What is known of versions, beyond themselves."""

    path = "/"
    tags = ("insight",)

    @get("/card", sync_to_thread=True)
    def show_card(self, request: Request[Any, Any, Any], ref: RefQuery) -> Card:
        """The version's model card: Markdown with YAML front matter, made from what the registry knows of it."""
        return Card(registry_of(request).card(ref, caller_of(request)))

    @get("/lineage", sync_to_thread=True)
    def show_lineage(self, request: Request[Any, Any, Any], ref: RefQuery, depth: DepthQuery = DEPTH_LIMIT) -> Lineage:
        """What a version was made of and what was made of it, as a graph of what the caller may read."""
        return registry_of(request).lineage(ref, caller_of(request), depth=depth)

    @get("/bases/{fingerprint:str}/lineage", sync_to_thread=True)
    def show_base_lineage(self, request: Request[Any, Any, Any], fingerprint: FingerprintPart) -> Lineage:
        """The versions that stand on a base, newest first."""
        return registry_of(request).base_lineage(fingerprint, caller_of(request))

    @get("/diff", sync_to_thread=True)
    def show_diff(
        self, request: Request[Any, Any, Any], before: BeforeQuery, after: AfterQuery, weights: WeightsQuery = True
    ) -> VersionDiff:
        """How two versions differ: files, config, metrics, shapes and weights."""
        return registry_of(request).diff(before, after, caller_of(request), with_weights=weights)
