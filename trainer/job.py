"""A job: one frozen, validated description of a training run.

It does: hold the sections (`job_sections`), and be read from TOML or from the values of flags, with an error that
names the key where something would not be honoured.
It does not: open the data, load a base or touch the run folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from registry.decoding import convert
from trainer.errors import JobError
from trainer.job_sections import (
    FEWEST_EXPERTS,
    MOST_EXPERTS,
    SECTIONS,
    AdapterSection,
    BaseSection,
    DataSection,
    EvaluationSection,
    MixtureSection,
    OptimizationSection,
    OutputSection,
)
from trainer.job_values import anchor_paths, explained, overlaid, refuse_non_finite, refuse_unknown_keys

Values = Mapping[str, Any]
PATH_KEYS = ("data.train", "evaluation.validation", "output.run")
PATH_OR_NAME_KEYS = ("base.source", "adapter.init_from", "mixture.experts")
OF_NEW_ADAPTERS = ("r", "alpha", "target_modules", "rslora")
EXCLUSIVE_KEYS = (
    ("epochs", "max_steps"),
    ("batch_tokens", "batch_rows"),
    ("validation", "validation_fraction"),
)


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training run, fully described. Two equal jobs over equal files give equal adapters."""

    data: DataSection
    name: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?![\s\S])")] | None,
        Meta(description="The run's name; unset: the adapter's in `publish`, or the training file's."),
    ] = None
    base: BaseSection = BaseSection()
    adapter: AdapterSection = AdapterSection()
    mixture: MixtureSection = MixtureSection()
    optimization: OptimizationSection = OptimizationSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection = OutputSection()

    def __post_init__(self) -> None:
        """Refuse a method over a base that it is not made for."""
        if self.adapter.method == "qlora" and self.base.quantization in ("bf16", "fp32"):
            raise ValueError(
                f'adapter.method "qlora" trains over nf4, not over base.quantization "{self.base.quantization}"; '
                'set adapter.method = "lora", or leave base.quantization out'
            )
        if self.adapter.method == "lora" and self.base.quantization == "nf4":
            raise ValueError('adapter.method "lora" over base.quantization "nf4" is "qlora"; say so')
        if self.adapter.method == "switch":
            self._check_mixture()
        elif self.mixture != MixtureSection():
            raise ValueError('[mixture] has a meaning only where adapter.method is "switch"')
        elif self.adapter.init_from is not None:
            given = [f"adapter.{key}" for key in OF_NEW_ADAPTERS if self._is_set(key)]
            if given:
                raise ValueError(f"{', '.join(given)}: adapter.init_from names an adapter that has its own")

    def _check_mixture(self) -> None:
        """Refuse a number of experts that is none, and settings of experts that are not trained."""
        mixture = self.mixture
        count = len(mixture.experts) + mixture.new_experts
        if not FEWEST_EXPERTS <= count <= MOST_EXPERTS:
            raise ValueError(
                f"a mixture has {FEWEST_EXPERTS} to {MOST_EXPERTS} experts, and mixture.experts with "
                f"mixture.new_experts are {count}"
            )
        if mixture.top_k > count:
            raise ValueError(f"mixture.top_k is {mixture.top_k}, and there are {count} experts")
        if not mixture.train_experts and not mixture.experts:
            raise ValueError("mixture.train_experts is about mixture.experts, and none is named; new ones always train")
        unused = [] if mixture.new_experts else [f"adapter.{key}" for key in OF_NEW_ADAPTERS if self._is_set(key)]
        if not self.trains_experts:
            unused += ["adapter.dtype"] if self._is_set("dtype") else []
            standard = OptimizationSection().learning_rate
            unused += ["optimization.learning_rate"] if self.optimization.learning_rate != standard else []
        if unused:
            raise ValueError(
                f"{', '.join(unused)}: of experts that train here, and this mixture has none. The gate's rate is "
                "mixture.gate_learning_rate; new experts come with mixture.new_experts"
            )
        if self.adapter.init_from is not None:
            raise ValueError("adapter.init_from is one adapter; a mixture begins with mixture.experts")
        if self._is_set("dropout"):
            raise ValueError("adapter.dropout is not for mixtures: all experts see the same input")

    def _is_set(self, key: str) -> bool:
        """Whether a setting of [adapter] is not the default."""
        return bool(getattr(self.adapter, key) != getattr(AdapterSection(), key))

    @property
    def trains_experts(self) -> bool:
        """Whether a mixture's experts train, some or all: else its gate trains alone."""
        return self.mixture.train_experts or self.mixture.new_experts > 0

    @staticmethod
    def from_toml(path: Path, *, overrides: Values | None = None, defaults: Values | None = None) -> Job:
        """Read a job file; paths in it are relative to it. It wins over `defaults`, `overrides` win over it.

        Raises JobError.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise JobError(f"cannot be read: {error.strerror}", origin=str(path)) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise JobError(f"is not TOML: {error}", origin=str(path)) from error
        refuse_unknown_keys(document, known_keys(), origin=str(path))
        anchor_paths(document, PATH_KEYS, PATH_OR_NAME_KEYS, path.parent)
        return Job.from_layers(defaults or {}, document, overrides or {}, origin=str(path))

    @staticmethod
    def from_layers(*layers: Values, origin: str) -> Job:
        """A job from nested plain values, later layers over earlier ones. Raises JobError."""
        values: Values = {}
        for layer in layers:
            values = overlaid(values, layer, EXCLUSIVE_KEYS)
        return Job.from_values(values, origin=origin)

    @staticmethod
    def from_values(values: Values, *, origin: str = "the job") -> Job:
        """A job from nested plain values. Raises JobError that names the key, what was given and what is allowed."""
        refuse_unknown_keys(values, known_keys(), origin=origin)
        refuse_non_finite(values, origin=origin)
        values = {"data": {}, **values}
        try:
            return convert(values, Job, dec_hook=_decode_path)
        except msgspec.ValidationError as error:
            raise explained(str(error), values=values, structs=SECTIONS, origin=origin) from error

    @property
    def run_name(self) -> str:
        """The name of the run and of its folder."""
        if self.name is not None:
            return self.name
        source = self.output.publish.rpartition("/")[2] if self.output.publish else self.data.train.stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-._") or "run"

    @property
    def mode(self) -> Literal["nf4", "bf16", "fp32"]:
        """How the base is loaded."""
        if self.base.quantization is not None:
            return self.base.quantization
        return "bf16" if self.adapter.method == "lora" else "nf4"

    def to_json(self) -> dict[str, Any]:
        """The job as plain values. Files appear by name only: a manifest must not show a machine's paths."""
        document = msgspec.json.decode(msgspec.json.encode(self, enc_hook=lambda path: Path(path).name))
        document["output"].pop("run")
        document["name"] = self.run_name
        document["base"]["source"] = _without_folders(document["base"]["source"])
        if self.adapter.init_from is not None:
            document["adapter"]["init_from"] = _without_folders(self.adapter.init_from)
        document["mixture"]["experts"] = [_without_folders(expert) for expert in document["mixture"]["experts"]]
        document["mixture"]["gate_learning_rate"] = self.mixture.gate_rate
        if self.adapter.method != "switch":
            document.pop("mixture")
        return dict(document)


def known_keys() -> dict[str, tuple[str, ...] | None]:
    """The keys of a job file: each section's, and None for a key that is a plain value."""
    return {name: SECTIONS[name].__struct_fields__ if name in SECTIONS else None for name in Job.__struct_fields__}


def is_folder_name(text: str) -> bool:
    """Whether a base's or an expert's source is a folder: the other sources are names."""
    return text.startswith(("/", "~", "."))


def _without_folders(source: str) -> str:
    return Path(source).name if is_folder_name(source) else source


def _decode_path(wanted: type, value: Any) -> Path:
    if wanted is not Path or not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a path")
    return Path(value)
