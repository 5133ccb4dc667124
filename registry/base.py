"""What the registry knows of a quantized base: its fingerprint, and the module map that adapters are judged against.

The record is read from base.json as plain JSON; the registry never loads the base itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from registry.decoding import convert
from registry.errors import InvalidBaseError, InvalidNameError
from registry.names import parse_fingerprint

BASE_DOCUMENT_SCHEMA = 1
MODULES_LIMIT = 100_000

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class BaseModule(msgspec.Struct, frozen=True):
    """One layer of the base. For an embedding `in_features` is the number of rows."""

    kind: Literal["linear", "embedding"]
    out_features: _Size
    in_features: _Size
    quantized: bool = False


class Quantization(msgspec.Struct, frozen=True):
    """How the base's weights are stored and computed."""

    mode: Literal["nf4", "bf16", "fp32"]
    compute_dtype: _Text
    block_size: _Size | None = None
    double_quantization: bool | None = None


class BaseRecord(msgspec.Struct, frozen=True):
    """A registered base. Its identity is the fingerprint; the name is what people call it.

    `vectors` are the lengths of its norms and biases, by full name; none where an earlier release registered it.
    """

    name: _Text
    fingerprint: str
    quantization: Quantization
    architecture: _Text
    vocabulary_size: _Size
    context_tokens: _Size
    modules: dict[str, BaseModule]
    revision: _Text | None = None
    vectors: dict[str, _Size] = {}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BaseRecord:
        """Read a base.json that is already parsed. Raises InvalidBaseError.

        Fields that are not named here are allowed: base.json belongs to the basemodel package, and its `schema`
        changes where the meaning of these fields does.
        """
        schema = document.get("schema")
        if schema != BASE_DOCUMENT_SCHEMA:
            raise InvalidBaseError(f"its schema is {schema!r}, and this release reads {BASE_DOCUMENT_SCHEMA}")
        try:
            record = convert(dict(document), cls)
            parse_fingerprint(record.fingerprint)
        except (msgspec.ValidationError, InvalidNameError) as error:
            raise InvalidBaseError(str(error).rstrip(".")) from error
        if not 0 < len(record.modules) <= MODULES_LIMIT:
            raise InvalidBaseError(f"it lists {len(record.modules)} modules, and 1 to {MODULES_LIMIT} are possible")
        if len(record.vectors) > MODULES_LIMIT:
            raise InvalidBaseError(f"it lists {len(record.vectors)} vectors, and {MODULES_LIMIT} are possible")
        return record

    def to_json(self) -> dict[str, Any]:
        """The document that `from_json` reads."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {"schema": BASE_DOCUMENT_SCHEMA, **fields}
