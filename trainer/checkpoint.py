"""The state of a run between two steps, on disk, so that a resumed run goes on exactly.

It does: write adapter, optimizer, random states and position as safetensors and JSON (nothing is pickled), each
checkpoint whole or not at all; read the newest back; refuse one of another run.
It does not: decide when (`loop`). The learning rate and the order of rows are pure functions of the position
(`schedule`, `batches`), so the position is all that they need.

    CHECKPOINTS/step-00000120/  state.safetensors, state.json     the newest one is kept
    CHECKPOINTS/best.safetensors                                  the adapter with the best validation loss
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.run_folder import replace_file, replaced_folder, write_json
from trainer.tuners import PeftModel

TENSORS_FILE = "state.safetensors"
POSITION_FILE = "state.json"
BEST_FILE = "best.safetensors"


@dataclass
class Position:
    """How far a run is, and what it has seen. Only the loop changes it. Losses are (step, loss) after that step."""

    step: int = 0
    label_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    validations_without_best: int = 0
    stopped_early: bool = False


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for a resumed run to be the same run. `origins` are digests, None for what is new."""

    job: dict[str, Any]
    data_digest: str
    base_fingerprint: str
    origins: list[str | None] = field(default_factory=list)

    def refuse_other(self, other: RunIdentity, folder: Path) -> None:
        """Raise CheckpointError that names the first difference."""
        if self.data_digest != other.data_digest:
            raise CheckpointError(folder, "the data files have changed since this run began; begin a new run")
        if self.base_fingerprint != other.base_fingerprint:
            raise CheckpointError(
                folder, f"this run stands on base {other.base_fingerprint}, not on {self.base_fingerprint}"
            )
        if self.origins != other.origins:
            reason = "the adapters are not the versions with which this run began; name those, or begin a new run"
            raise CheckpointError(folder, reason)
        for section, values in self.job.items():
            before = other.job.get(section)
            if section == "output" or values == before:
                continue
            changed = [f"{section}.{key}" for key in values if values[key] != before.get(key)] if before else [section]
            raise CheckpointError(folder, f"{changed[0]} differs from the run that began here; begin a new run for it")


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The tensors that train, by name: the live ones, not copies."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_of_gate(name: str) -> bool:
    """Whether a tensor that trains is a mixture's gate, not an adapter's."""
    return name.startswith("gate.")


def save_checkpoint(
    folder: Path, position: Position, identity: RunIdentity, model: PeftModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write the state after `position.step` steps, then remove the older one."""
    names = {parameter: name for name, parameter in adapter_tensors(model).items()}
    tensors = {f"adapter.{name}": parameter.detach().cpu() for parameter, name in names.items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{key}.{names[parameter]}": value.cpu() for key, value in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(model.device)
    newest = folder / f"step-{position.step:08d}"
    with replaced_folder(newest) as fresh:
        save_file(tensors, fresh / TENSORS_FILE)
        write_json(fresh / POSITION_FILE, {"position": asdict(position), "identity": asdict(identity)})
    for older in folder.glob("step-*"):
        if older != newest:
            shutil.rmtree(older)


def load_checkpoint(
    folder: Path, identity: RunIdentity, model: PeftModel, optimizer: torch.optim.Optimizer
) -> Position | None:
    """Restore the newest state into `model`, `optimizer` and torch's random state; None if no step was saved yet.

    Raises CheckpointError where it is damaged or of another run.
    """
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return None
    try:
        document = json.loads((newest / POSITION_FILE).read_text(encoding="utf-8"))
        tensors = load_file(newest / TENSORS_FILE)
        position = Position(**document["position"])
        saved_identity = RunIdentity(**document["identity"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"is damaged ({error.__class__.__name__}: {error}); begin a new run with --overwrite"
        raise CheckpointError(newest, reason) from error
    identity.refuse_other(saved_identity, newest)
    position.losses = [(step, loss) for step, loss in position.losses]
    position.validations = [(step, loss) for step, loss in position.validations]
    live = adapter_tensors(model)
    if {name for name in tensors if name.startswith("adapter.")} != {f"adapter.{name}" for name in live}:
        raise CheckpointError(newest, "holds other tensors than this adapter has; begin a new run with --overwrite")
    _restore(tensors, live, optimizer)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and model.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], model.device)
    return position


def save_best(folder: Path, model: PeftModel) -> None:
    """Keep the adapter as it is now as the best one."""
    fresh = folder / f".{BEST_FILE}.new"
    save_file({name: tensor.detach().cpu() for name, tensor in adapter_tensors(model).items()}, fresh)
    replace_file(fresh, folder / BEST_FILE)


def restore_best(folder: Path, model: PeftModel) -> None:
    """Put the best adapter back into `model`. Raises CheckpointError."""
    try:
        best = load_file(folder / BEST_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder / BEST_FILE, f"cannot be read: {error}") from error
    with torch.no_grad():
        for name, parameter in adapter_tensors(model).items():
            parameter.copy_(best[name])


def _restore(tensors: dict[str, Tensor], live: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(tensors[f"adapter.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][key] = tensors[f"optimizer.{key}.{name}"].to(parameter.device)
