"""The sections of a job: every setting once, with its type, range, default and help.

It does: define the settings, and refuse two answers to one question. The command's flags and the table in
docs/training.md are derived from these structs by `trainer.setting`.
It does not: read files (`job`) or explain errors (`job_values`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trainer.job_values import refuse_both

ALL_LINEAR = "all-linear"
DEFAULT_EPOCHS = 3
DEFAULT_BATCH_TOKENS = 2048
FEWEST_EXPERTS, MOST_EXPERTS = 2, 16  # as in basemodel.mixture_gate, which needs torch; a test compares
GATE_RATE_OF_GIVEN, GATE_RATE_OF_FRESH = 0.005, 0.05

Text = Annotated[str, Meta(min_length=1, max_length=500)]
ModuleName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.]{1,200}(?![\s\S])")]
Count = Annotated[int, Meta(ge=1, le=100_000_000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class BaseSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[base]: the model that the adapter stands on."""

    source: Annotated[
        Text,
        Meta(description="`embedded`, a model folder (`./`, `/` or `~` first), or a Hub id `owner/name[@revision]`."),
    ] = "embedded"
    quantization: Annotated[
        Literal["nf4", "bf16", "fp32"] | None,
        Meta(description="How the base is stored; unset: `nf4` for qlora, `bf16` for lora."),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="`auto` takes a CUDA GPU where there is one.")
    ] = "auto"


class DataSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[data]: what is learned."""

    train: Annotated[Path, Meta(description="The training file: `.jsonl`, `.csv` or `.tsv`.")]
    format: Annotated[
        Literal["auto", "chat", "prompt-completion", "text"],
        Meta(description="What a row holds; `auto` decides by the fields of a file's first row."),
    ] = "auto"
    as_chat: Annotated[
        bool, Meta(description="Render prompt and completion as a user's and an assistant's turn of the chat template.")
    ] = False
    max_row_tokens: Annotated[
        Annotated[int, Meta(ge=8, le=10_000_000)] | None,
        Meta(description="Most tokens of a row; unset: the base's context."),
    ] = None
    too_long: Annotated[
        Literal["error", "truncate", "drop"],
        Meta(description="A longer row: refuse the job, cut the row's end off, or leave the row out. Each is counted."),
    ] = "error"


class AdapterSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[adapter]: what is trained."""

    method: Annotated[
        Literal["qlora", "lora", "switch"],
        Meta(
            description="`qlora` trains over the 4-bit base, `lora` over an unquantized one; "
            "`switch` makes a mixture of the experts in [mixture]."
        ),
    ] = "qlora"
    init_from: Annotated[
        Text | None,
        Meta(
            description="Go on from this adapter, named as in `mixture.experts`; r, alpha, rslora and modules are "
            "then its own. Unset: begin fresh."
        ),
    ] = None
    r: Annotated[Annotated[int, Meta(ge=1, le=1024)], Meta(description="Rank.")] = 32
    alpha: Annotated[
        Annotated[float, Meta(gt=0, le=65536)], Meta(description="Scale: the update is multiplied by alpha/r.")
    ] = 32.0
    dropout: Annotated[
        Annotated[float, Meta(ge=0, lt=1)], Meta(description="Dropout on the adapter's input while training.")
    ] = 0.0
    target_modules: Annotated[
        Literal["all-linear"] | tuple[ModuleName, ...],
        Meta(description="`all-linear` (each linear layer but the output head), or names or endings of module names."),
    ] = "all-linear"
    rslora: Annotated[bool, Meta(description="Scale by alpha/sqrt(r) instead.")] = False
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8"],
        Meta(
            description="The type the adapter is saved in; it trains in float32 and is evaluated as saved. `int8` is "
            "a bfloat16 file of values that the server keeps in 8 bits."
        ),
    ] = "float32"

    def __post_init__(self) -> None:
        """Refuse an empty or repeating list of modules."""
        names = self.target_modules
        if names != ALL_LINEAR and (not names or len(set(names)) != len(names)):
            raise ValueError("target_modules must name at least one module, and each one once")


class MixtureSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[mixture]: the experts and the gate, where adapter.method is "switch"."""

    experts: Annotated[
        tuple[Text, ...],
        Meta(
            description="Published adapters `tenant/adapter[@version or alias]`, or adapter folders "
            "(`./`, `/` or `~` first)."
        ),
    ] = ()
    new_experts: Annotated[
        Annotated[int, Meta(ge=0, le=MOST_EXPERTS)],
        Meta(description="So many more that begin fresh, as [adapter] says; they always train."),
    ] = 0
    train_experts: Annotated[
        bool,
        Meta(description="Train the given experts further, into versions of their own; else they stay as they are."),
    ] = True
    top_k: Annotated[Annotated[int, Meta(ge=1, le=MOST_EXPERTS)], Meta(description="Experts of each token.")] = 1
    gate_context: Annotated[
        Literal["running_mean", "token"],
        Meta(description="What decides: the mean score of the row's tokens so far, or the token alone."),
    ] = "running_mean"
    gate_decay: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="Older tokens count less in the mean, by this factor a token; unset: all count the same."),
    ] = None
    gate_learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="Highest learning rate of the gate; unset: 0.005, or 0.05 where experts begin fresh."),
    ] = None
    balance: Annotated[
        Annotated[float, Meta(ge=0, le=100)],
        Meta(description="Weight of the term that spreads tokens over the experts."),
    ] = 0.01

    @property
    def gate_rate(self) -> float:
        """The highest learning rate of the gate: what it knows of given experts before the first step must last."""
        if self.gate_learning_rate is not None:
            return self.gate_learning_rate
        return GATE_RATE_OF_FRESH if self.new_experts else GATE_RATE_OF_GIVEN

    def __post_init__(self) -> None:
        """Refuse an expert twice, and a decay of nothing."""
        if len(set(self.experts)) != len(self.experts):
            raise ValueError("experts must name each one once")
        if self.gate_decay is not None and self.gate_context != "running_mean":
            raise ValueError('gate_decay has a meaning only where gate_context is "running_mean"')


class OptimizationSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[optimization]: how it is trained."""

    epochs: Annotated[Count | None, Meta(description="Passes over the data; unset: 3, or as `max_steps` says.")] = None
    max_steps: Annotated[Count | None, Meta(description="Optimizer steps, in place of `epochs`.")] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1)], Meta(description="Highest learning rate of AdamW.")
    ] = 3e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], Meta(description="After the warm-up: decay to zero, or none.")
    ] = "cosine"
    warmup_ratio: Annotated[Fraction, Meta(description="Share of the steps in which the learning rate rises.")] = 0.05
    batch_tokens: Annotated[
        Count | None,
        Meta(
            description="Most tokens of a forward, with padding; a longer row goes alone. Unset: 2048, or `batch_rows`."
        ),
    ] = None
    batch_rows: Annotated[Count | None, Meta(description="Rows of a forward, in place of `batch_tokens`.")] = None
    gradient_accumulation: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)],
        Meta(description="Forwards per step; the loss is the mean over all their label tokens."),
    ] = 1
    gradient_checkpointing: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="Recompute activations to save memory; `auto` decides by an estimate."),
    ] = "auto"
    max_grad_norm: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)], Meta(description="Gradients are scaled down to this norm.")
    ] = 1.0
    weight_decay: Annotated[
        Annotated[float, Meta(ge=0, le=10)], Meta(description="Decoupled weight decay of AdamW.")
    ] = 0.0
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**53)], Meta(description="Decides initialization, order, split and dropout.")
    ] = 0

    def __post_init__(self) -> None:
        """Refuse two answers to one question."""
        refuse_both(self, "epochs", "max_steps")
        refuse_both(self, "batch_tokens", "batch_rows")


class EvaluationSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[evaluation]: how it is judged."""

    validation: Annotated[
        Path | None, Meta(description="A validation file; it needs not have the training file's format.")
    ] = None
    validation_fraction: Annotated[
        Annotated[float, Meta(ge=0, le=0.5)] | None,
        Meta(description="Share of the training rows held out; equal rows stay together. Unset: 0.05. 0: none."),
    ] = None
    every_steps: Annotated[
        Count | None,
        Meta(description="Steps between validations and checkpoints; unset: ten times a run, at least 10 steps apart."),
    ] = None
    early_stopping_patience: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | None,
        Meta(
            description="Stop after so many validations without a new best loss; unset: never. The best is kept always."
        ),
    ] = None
    exact_match: Annotated[
        bool, Meta(description="Generate greedily and count answers that are right to the letter.")
    ] = True
    loss_rows: Annotated[Count, Meta(description="Most validation rows for the loss.")] = 1000
    exact_match_rows: Annotated[Count, Meta(description="Most validation rows to generate for.")] = 200

    def __post_init__(self) -> None:
        """Refuse two sources of validation rows, and a patience with none."""
        refuse_both(self, "validation", "validation_fraction")
        if self.early_stopping_patience is not None and self.validation_fraction == 0:
            raise ValueError("early_stopping_patience needs validation rows; validation_fraction is 0")


class OutputSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[output]: where it goes."""

    run: Annotated[Path | None, Meta(description="The run folder; unset: HOME/runs/NAME.")] = None
    publish: Annotated[Text | None, Meta(description="Publish the adapter under this name, `tenant/adapter`.")] = None
    visibility: Annotated[
        Literal["private", "public"] | None,
        Meta(description="Who may read it; unset: as the registry has it, first private."),
    ] = None
    alias: Annotated[Text | None, Meta(description="Move this alias to the published version.")] = None
    message: Annotated[
        Annotated[str, Meta(max_length=2000)], Meta(description="A note that is kept with the published version.")
    ] = ""

    def __post_init__(self) -> None:
        """Refuse settings of a publication that does not happen."""
        for key in ("visibility", "alias", "message"):
            if getattr(self, key) and self.publish is None:
                raise ValueError(f"{key} has a meaning only where publish is given")


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "base": BaseSection,
    "data": DataSection,
    "adapter": AdapterSection,
    "mixture": MixtureSection,
    "optimization": OptimizationSection,
    "evaluation": EvaluationSection,
    "output": OutputSection,
}
