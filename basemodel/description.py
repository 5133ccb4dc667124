"""What a quantized base is, as plain values: the content of `base.json`.

It does: describe a base (identity, quantization, shapes) and convert it to and from JSON.
It does not: read or hash weights (`fingerprint`, `snapshot`), or hold tensors (`load`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Mode = Literal["nf4", "bf16", "fp32"]
SCHEMA = 1


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored and in which type they compute.

    `block_size` and `double_quantization` have a meaning for mode "nf4" only.
    Source: QLoRA (arXiv 2305.14314), section 3.
    """

    mode: Mode
    compute_dtype: Literal["bfloat16", "float32"]
    block_size: int = 64
    double_quantization: bool = True


@dataclass(frozen=True)
class ModuleShape:
    """One module an adapter may name. Of an embedding, `in_features` counts rows and `out_features` is their width."""

    kind: Literal["linear", "embedding"]
    out_features: int
    in_features: int
    quantized: bool


@dataclass(frozen=True)
class BaseDescription:
    """A base as everybody but torch sees it. `fingerprint` is 64 hex digits and stands for the exact bytes.

    `vectors` are the lengths of its one-dimensional parameters (norms and biases), by their full names.
    """

    name: str
    revision: str | None
    fingerprint: str
    quantization: Quantization
    architecture: str
    vocabulary_size: int
    context_tokens: int
    modules: dict[str, ModuleShape]
    vectors: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document that is written as `base.json` and registered in the registry."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> BaseDescription:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError where the document is not one of ours."""
        fields = dict(document)
        schema = fields.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"base.json has schema {schema}; this release reads schema {SCHEMA}")
        fields["quantization"] = Quantization(**fields["quantization"])
        fields["modules"] = {path: ModuleShape(**shape) for path, shape in fields["modules"].items()}
        return BaseDescription(**fields)
