"""What adapters change at a layer besides LoRA: the slots may come and go in any order, within a step and outside."""

from __future__ import annotations

import torch

from basemodel.adapter_changes import LinearChange
from basemodel.linear_changes import LinearChanges
from basemodel.lora_ops import ChangedTokens

OUTPUTS = 20
CPU = torch.device("cpu")


def test_a_slot_leaves_after_a_step_made_room_for_another() -> None:
    """The step runs in inference mode; adapters are put and dropped outside of it."""
    changes = LinearChanges(OUTPUTS)
    changes.put(0, LinearChange(scale=torch.full((OUTPUTS,), 2.0), shift=torch.ones(OUTPUTS)), CPU)
    elsewhere = ChangedTokens(((slice(0, 1), 0), (slice(1, 2), 3)), frozenset({0, 3}), torch.tensor([0, 3]))
    with torch.inference_mode():
        rows = changes.output_rows(elsewhere)
    assert rows is not None
    assert rows.scale[[0, 3], 0].tolist() == [2.0, 1.0]  # slot 3 has a change elsewhere, and none at this layer
    assert rows.shift[[0, 3], 0].tolist() == [1.0, 0.0]
    changes.drop(0)
    changes.put(1, LinearChange(shift=torch.full((OUTPUTS,), 5.0)), CPU)
    rows = changes.output_rows(elsewhere)
    assert rows is not None
    assert rows.scale[:, 0].tolist() == [1.0] * 4
    assert rows.shift[:, 0].tolist() == [0.0, 5.0, 0.0, 0.0]
