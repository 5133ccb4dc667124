"""Loads the CPU kernels, once, where they are built and the processor can run them."""

from __future__ import annotations

import logging
from functools import cache

import torch

from basemodel.kernels.build import library_path

logger = logging.getLogger(__name__)


@cache
def has_cpu_kernels() -> bool:
    """Whether `torch.ops.loraplex.nf4_linear` can be called in this process."""
    path = library_path()
    if not path.exists():
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        logger.warning("the CPU kernels at %s cannot be loaded (%s); bitsandbytes is used", path.name, error)
        return False
    return bool(torch.ops.loraplex.is_supported())
