"""Where the gate of a mixture of given experts begins: it knows which of them is best at some of the training's rows.

It does: have every expert answer for these rows alone, give each row to the one with the least loss, and fit the gate
to name it from every token of the row on.
It does not: train with the loss of the language model (`loop`), which goes on from here. That loss alone says little
about the first tokens of a prompt, which nothing is learned about; here they count as much as the others, and a wrong
expert at a prompt's beginning is what costs answers that copy from it (docs/log.md).

Letters: N tokens of all rows, E experts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.batches import BatchLimit, collate, plan_by_length
from trainer.encoding import Example
from trainer.evaluate import spread
from trainer.forward import label_logits
from trainer.gate import Gate
from trainer.tuners import PeftModel

START_ROWS = 96
START_TOKENS = 16_384  # most, of all rows together
START_PENALTY = 1e-3  # of the weight's squares: without, rows that can be told apart make it grow without end
FIT_ITERATIONS = 60


def begin_gate(model: PeftModel, gate: Gate, rows: Sequence[Example], limit: BatchLimit) -> None:
    """Fit `gate` to the best of its experts on some of `rows`. The model's mode is left as it was."""
    some = _some(rows)
    best = best_experts(model, gate, some, limit)
    inputs = [gate.inputs(torch.from_numpy(row.token_ids.astype(np.int64)).to(best.device)) for row in some]
    wanted = torch.cat([best[index].expand(len(each)) for index, each in enumerate(inputs)])
    share = torch.cat([torch.full((len(each),), 1 / len(each)) for each in inputs]).to(best.device) / len(inputs)
    fit_gate(gate, torch.cat(inputs), wanted, share)


def best_experts(model: PeftModel, gate: Gate, rows: Sequence[Example], limit: BatchLimit) -> Tensor:
    """The expert with the least loss on each row, over the row's label tokens: int64, one a row."""
    was_training = model.training
    model.eval()
    losses = torch.zeros(len(rows), gate.experts, device=model.device)
    with torch.no_grad():
        for indices in plan_by_length([len(row.token_ids) for row in rows], limit):
            batch = collate([rows[index] for index in indices], model.device)
            owner = torch.tensor(indices, device=model.device)[batch.positions // batch.token_ids.shape[1]]
            for expert in range(gate.experts):
                with gate.only(expert):
                    each = F.cross_entropy(label_logits(model, batch).float(), batch.targets, reduction="none")
                losses[:, expert].index_add_(0, owner, each)
    model.train(was_training)
    return losses.argmin(dim=1)


def fit_gate(gate: Gate, inputs: Tensor, wanted: Tensor, share: Tensor) -> None:
    """Fit the gate's parameters to name the expert `wanted` [N] from `inputs` [N, H]; `share` [N] weighs the tokens."""
    inputs, share = inputs.float(), share.float()
    gate.begin_even()
    fit = torch.optim.LBFGS(gate.parameters(), max_iter=FIT_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fit.zero_grad()
        scores = inputs @ gate.weight.T + gate.bias
        wrong = (F.cross_entropy(scores, wanted, reduction="none") * share).sum()
        total = wrong + START_PENALTY * gate.weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        fit.step(loss)
    fit.zero_grad()


def _some(rows: Sequence[Example]) -> list[Example]:
    """At most so many rows, and not many more tokens than allowed."""
    chosen, tokens = [], 0
    for row in spread(rows, most=START_ROWS):
        chosen.append(row)
        tokens += len(row.token_ids)
        if tokens >= START_TOKENS:
            break
    return chosen
