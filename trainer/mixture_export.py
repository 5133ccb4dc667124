"""Writes a finished mixture: the experts that trained, as PEFT folders, and the mixture that names all by digest.

It does: export in that order, since the digest of an expert is that of its files, and record what the gate chooses.
It does not: judge (`conclusion`) or publish (`publication`).
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from basemodel.mixture_gate import write_mixture
from basemodel.score_table import RouterState
from trainer.card import render_mixture_card
from trainer.export import CARD_FILE, MANIFEST_FILE, export_adapter, refuse_private
from trainer.manifest import build_manifest
from trainer.origins import digest_of_folder
from trainer.outcome import Outcome
from trainer.probes import measure_probes
from trainer.result import FinishedExpert
from trainer.run_folder import RunFolder, replaced_folder, write_json
from trainer.switch import Switch


def export_mixture(outcome: Outcome, switch: Switch, folder: RunFolder) -> tuple[FinishedExpert, ...]:
    """Write RUN/experts and RUN/adapter, and say what the mixture is made of. Raises ExportError."""
    shutil.rmtree(folder.experts, ignore_errors=True)
    shares = _shares(outcome, switch)
    experts = tuple(
        _finished(outcome, switch, place, folder, share=None if shares is None else shares[place])
        for place in range(len(switch.experts))
    )
    manifest = build_manifest(
        outcome.record,
        outcome.run.base.description,
        base_metrics=outcome.base_metrics,
        adapter_metrics=outcome.adapter_metrics,
        probes=measure_probes(outcome.run.model, outcome.prompts),
        mixture=_description(outcome, experts),
    )
    mixture = switch.gate.mixture(outcome.run.base.description.fingerprint, tuple(expert.digest for expert in experts))
    with replaced_folder(folder.adapter) as fresh:
        write_mixture(mixture, fresh)
        write_json(fresh / MANIFEST_FILE, manifest)
        (fresh / CARD_FILE).write_text(render_mixture_card(manifest), encoding="utf-8")
        refuse_private(fresh, outcome.private_paths(folder))
    return experts


def _finished(
    outcome: Outcome, switch: Switch, place: int, folder: RunFolder, *, share: float | None
) -> FinishedExpert:
    """The expert as the mixture names it: written now if it trained, else as it came."""
    expert = switch.experts[place]
    if not switch.trained[place]:
        assert expert.digest is not None, "what does not train came from somewhere"
        return FinishedExpert(expert.name, expert.digest, None if expert.is_published else expert.folder, share)
    run = outcome.run
    folder.experts.mkdir(exist_ok=True)
    target = folder.experts / str(place + 1)
    with switch.gate.only(place):
        probes = measure_probes(run.model, outcome.prompts)
    manifest = build_manifest(
        outcome.record,
        run.base.description,
        base_metrics=None,  # rows of all domains say little about one expert
        adapter_metrics=None,
        probes=probes,
        parent=expert.digest,
    )
    export_adapter(
        run.model,
        target,
        dtype=run.job.adapter.dtype,
        base=run.base.description,
        manifest=manifest,
        private_paths=outcome.private_paths(folder),
        adapter=Switch.name_of(place),
    )
    return FinishedExpert(expert.name, digest_of_folder(target), target, share)


def _description(outcome: Outcome, experts: tuple[FinishedExpert, ...]) -> dict[str, Any]:
    section = outcome.run.job.mixture
    return {
        "top_k": section.top_k,
        "context": section.gate_context,
        "decay": section.gate_decay,
        "experts": [
            {"name": expert.name, "digest": expert.digest, "share": expert.share, "trained": trained}
            for expert, trained in zip(experts, outcome.run.switch.trained if outcome.run.switch else (), strict=True)
        ],
    }


def _shares(outcome: Outcome, switch: Switch) -> list[float] | None:
    """Each expert's part of the weights over the tokens of the validation rows; None without such rows."""
    if not outcome.run.validation:
        return None
    table = switch.gate.table()
    sums, tokens = np.zeros(len(switch.experts)), 0
    for example in outcome.run.validation:
        experts, weights, _ = table.route(example.token_ids.astype(np.int64), RouterState())
        np.add.at(sums, experts.ravel(), weights.ravel())
        tokens += len(example.token_ids)
    return [round(float(share), 4) for share in sums / tokens]
