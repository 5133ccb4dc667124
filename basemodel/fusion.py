"""Puts fused blocks and layers into a model on the CPU kernels, and a walk over them, each where a trial allows it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from basemodel.attach import AdapterSites
from basemodel.blocks import fused_block
from basemodel.fused_layer import Fusion, fused_layer
from basemodel.fused_model import FusedModel, fused_model
from basemodel.kernels.library import has_cpu_kernels
from basemodel.trials import listen


def fuse(model: PreTrainedModel, sites: AdapterSites) -> tuple[Fusion, FusedModel | None]:
    """Fuse what can be fused, after `AdapterSites` took over the linear layers; the model as a whole, if it can be.

    The model's attention function may be a trial's afterwards: who attaches attention sets its own.
    """
    fusion = Fusion()
    if not has_cpu_kernels() or model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return fusion, None
    model.set_attn_implementation(listen([]))
    own = [module for module in model.modules() if type(module).__module__.startswith("transformers.models.")]
    with torch.inference_mode():
        for module in own:
            block = fused_block(module, sites)
            if block is not None:
                module.forward = block  # of this one module: its class stays as it is
                fusion.blocks += 1
        for module in own:
            layer = fused_layer(module, sites, fusion)
            if layer is not None:
                module.forward = layer
                fusion.layers += 1
        return fusion, fused_model(model, sites, fusion)
