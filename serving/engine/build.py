"""Puts an engine together from its settings.

It does: load the base, size the adapter pool and the KV cache, and read which tokens end a text.
It does not: run a loop (`process`).
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from pathlib import Path

import torch

from basemodel.attach import AdapterSites, rank_row_bytes
from basemodel.cuda.graphs import CudaGraphs
from basemodel.cuda.library import has_gpu_kernels
from basemodel.load import Base, load_base
from basemodel.snapshot import DTYPES
from serving.engine.adapter_pool import AdapterPool
from serving.engine.adapter_reader import AdapterReader
from serving.engine.engine import Engine
from serving.engine.grammar_pool import GrammarPool
from serving.engine.kv_cache import KVBlocks
from serving.engine.runner import Runner
from serving.engine.scheduler import Scheduler, SchedulerLimits
from serving.messages import EngineSettings

logger = logging.getLogger(__name__)

# Rank rows set aside for each slot when no byte budget is given: the trainer's default rank.
DEFAULT_SLOT_RANK = 32
# Share of the free memory that the KV cache may take when its size is not given.
KV_MEMORY_SHARE = 0.3
TOKENIZER_FILE = "tokenizer.json"

# While somebody decodes on a CPU, a step has this part of its tokens.
CPU_MIXED_STEP_PART = 4
# Drafts fill a step up to so many tokens. On our CPU kernels 16 rows are one tile and cost little more than one.
CPU_DRAFT_STEP_TOKENS = 16
GPU_DRAFT_STEP_TOKENS = 64

# How much larger than the base's the embedding and head of an adapter may be if no byte budget is given.
GROWN_VOCABULARY = 1.125


def build_engine(settings: EngineSettings) -> Engine:
    """Load the base and make an engine around it. Raises BaseModelError, UnsupportedModelError."""
    base = load_base(
        settings.base,
        mode=settings.mode,
        compute_dtype=settings.compute_dtype,
        cache_dir=Path(settings.bases_folder),
        device=settings.device,
    )
    return engine_for(base, settings)


def engine_for(base: Base, settings: EngineSettings) -> Engine:
    """Make an engine around a base that is loaded; the base's layers are changed for good."""
    dtype = _adapter_dtype(base, settings.device)
    rows, whole_bytes = _adapter_room(settings, base, dtype)
    sites = AdapterSites(base.model, base.description, rows=rows, dtype=dtype)
    blocks = KVBlocks(_kv_blocks(settings, base), settings.kv_block_tokens)
    runner = Runner(
        base, sites, kv_slots=blocks.total * settings.kv_block_tokens, block_tokens=settings.kv_block_tokens
    )
    embedding = base.model.get_input_embeddings().get_parameter("weight").detach()
    is_cuda = settings.device.startswith("cuda")
    reader = AdapterReader(base.description, dtype, embedding, sites.weights, pins_memory=is_cuda)
    pool = AdapterPool(
        sites,
        reader,
        slots=settings.adapter_slots,
        host_cache_bytes=settings.host_cache_bytes,
        whole_bytes=whole_bytes,
    )
    limits = SchedulerLimits(
        max_running=settings.max_running,
        step_budget_tokens=settings.step_budget_tokens,
        mixed_step_tokens=_mixed_step_tokens(settings),
        draft_step_tokens=CPU_DRAFT_STEP_TOKENS if settings.device == "cpu" else GPU_DRAFT_STEP_TOKENS,
    )
    end_token_ids = _end_token_ids(base)
    grammars = GrammarPool(
        base.folder / TOKENIZER_FILE,
        vocabulary_tokens=base.description.vocabulary_size,
        end_token_ids=end_token_ids,
    )
    return Engine(
        runner,
        Scheduler(blocks, pool, limits),
        grammars,
        context_tokens=base.description.context_tokens,
        end_token_ids=end_token_ids,
        check_probes=settings.check_probes,
    )


def warm_up(engine: Engine, settings: EngineSettings) -> None:
    """What is done before the first request: a trial, on a GPU captures, and a word in the log where a CPU does not
    keep what docs/serving.md says of bits. Raises UnsupportedModelError.
    """
    engine.runner.warm_up()
    if settings.device == "cpu" and not engine.runner.is_on_cpu_kernels:
        logger.warning(
            "not all of this base runs on the CPU kernels (`loraplex doctor` says whether they are built and run "
            "here): answers take longer, and the last bits of a request's logits may change with the requests beside it"
        )
    device = torch.device(settings.device)
    if has_gpu_kernels(device) and settings.cuda_graph_bytes:
        engine.runner.capture_steps(
            CudaGraphs(device), most_rows=settings.max_running, memory_bytes=settings.cuda_graph_bytes
        )


def settle() -> None:
    """Take all objects that there are out of the garbage collector's sight: call it once, when the engine is built.

    They are the base's and the libraries', and stay. Without this, a full collection looks at all of them and stops
    every thread for a quarter of a second, in the middle of somebody's text.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries complain of objects that outlive the interpreter


def _mixed_step_tokens(settings: EngineSettings) -> int:
    """Tokens of a step in which somebody decodes. On a CPU a prompt's tokens take as long in small chunks as in large
    ones, and 512 of them stall the others for a second at 0.5B; a GPU needs them together.
    """
    if settings.mixed_step_tokens is not None:
        return min(settings.mixed_step_tokens, settings.step_budget_tokens)
    return settings.step_budget_tokens // (CPU_MIXED_STEP_PART if settings.device == "cpu" else 1)


def _adapter_dtype(base: Base, device: str) -> torch.dtype:
    """float32 on the CPU, where our kernel does not keep and compute them itself: what the trainer computes in, and for
    small products faster than bfloat16, which pays about 50 microseconds a call in oneDNN (docs/log.md). Elsewhere the
    base's compute type.
    """
    if device == "cpu":
        return torch.float32
    return DTYPES[base.description.quantization.compute_dtype]


def _adapter_room(settings: EngineSettings, base: Base, dtype: torch.dtype) -> tuple[int, int]:
    """Rank rows, and bytes for what adapters take beside them: if nothing else was said, as much again, and an
    embedding with its head, a little larger than the base's.
    """
    row_bytes = rank_row_bytes(base.model, base.description, dtype)
    rows = settings.adapter_slots * DEFAULT_SLOT_RANK
    if settings.adapter_pool_bytes is not None:
        rows = max(1, settings.adapter_pool_bytes // row_bytes)
    if settings.adapter_whole_bytes is not None:
        return rows, settings.adapter_whole_bytes
    table_bytes = base.model.get_input_embeddings().get_parameter("weight").nbytes
    return rows, rows * row_bytes + 2 * int(table_bytes * GROWN_VOCABULARY)


def _kv_blocks(settings: EngineSettings, base: Base) -> int:
    """Blocks for every running request at full context, or for what the free memory allows if that is less."""
    if settings.kv_cache_tokens is not None:
        return max(1, settings.kv_cache_tokens // settings.kv_block_tokens)
    wanted = settings.max_running * base.description.context_tokens
    affordable = int(KV_MEMORY_SHARE * _free_bytes(settings.device)) // _kv_token_bytes(base)
    return max(1, min(wanted, affordable) // settings.kv_block_tokens)


def _kv_token_bytes(base: Base) -> int:
    """Bytes that one token's keys and values take over all layers."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers) * int(heads) * int(size) * base.model.dtype.itemsize


def _free_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _end_token_ids(base: Base) -> frozenset[int]:
    """What ends a text: the generation config's end tokens, and the tokenizer's."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*listed, base.tokenizer.eos_token_id] if isinstance(token, int))
