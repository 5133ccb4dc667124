"""Reads adapter folders in threads, while the engine steps.

It does: read a few folders at once, in threads that give way to the engine's.
It does not: choose what is read next, or keep it (`adapter_pool`), or know what is in a folder (`host_adapter`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import torch

from basemodel.adapter_parts import BaseWeights
from basemodel.description import BaseDescription
from basemodel.errors import BaseModelError
from basemodel.known_fits import KnownFits
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import HostAdapter, HostMixture, read_host_adapter, read_host_mixture
from serving.messages import AdapterUse

# More than one, so that a folder on a slow disk does not hold up the others.
READING_THREADS = 2
# Linux gives each thread its own niceness: reading must not take the processors from the steps of rows that decode. At
# 15 one that is wanted elsewhere gives it a thirtieth of its time; where nothing else runs it reads at full speed.
READING_NICENESS = 15


class AdapterReader:
    """Folders on their way into memory, at most READING_THREADS. Only `AdapterPool` calls it.

    embedding [V, H] is the base's own, which gates score; `base_weights` is asked from the threads. `pins_memory`:
    page-locked, so that a CUDA device copies from it without waiting.
    """

    def __init__(
        self,
        base: BaseDescription,
        dtype: torch.dtype,
        embedding: torch.Tensor,
        base_weights: BaseWeights,
        *,
        pins_memory: bool = False,
    ) -> None:
        self._base = base
        self._dtype = dtype
        self._embedding = embedding
        self._base_weights = base_weights
        self._pins_memory = pins_memory
        self._known = KnownFits()
        self._executor = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="adapter-reader", initializer=_give_way)
        self._reading: dict[str, Future[HostAdapter | HostMixture]] = {}

    @property
    def is_full(self) -> bool:
        """Whether as many folders are being read as there are threads."""
        return len(self._reading) >= READING_THREADS

    @property
    def digests(self) -> list[str]:
        """What is being read, or was read and not yet collected."""
        return list(self._reading)

    def start(self, use: AdapterUse) -> bool:
        """Begin to read a folder; False if it is being read already."""
        if use.digest in self._reading:
            return False
        self._reading[use.digest] = self._executor.submit(self._read, use)
        return True

    def finished(self) -> list[tuple[str, HostAdapter | HostMixture | AdapterRefusedError]]:
        """What has been read since the last call, and what could not be."""
        done = [digest for digest, future in self._reading.items() if future.done()]
        return [(digest, _outcome(digest, self._reading.pop(digest))) for digest in done]

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _read(self, use: AdapterUse) -> HostAdapter | HostMixture:
        """Runs in a reading thread."""
        if use.experts:
            return read_host_mixture(use, self._base, self._embedding)
        return read_host_adapter(
            use, self._base, self._dtype, self._base_weights, known=self._known, is_pinned=self._pins_memory
        )


def _outcome(digest: str, future: Future[HostAdapter | HostMixture]) -> HostAdapter | HostMixture | AdapterRefusedError:
    try:
        return future.result()
    except AdapterRefusedError as error:
        return error
    except (BaseModelError, OSError, msgspec.DecodeError) as error:
        return AdapterRefusedError(digest, str(error))


def _give_way() -> None:
    """Lower the calling thread's priority, where the system can do that for one thread."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), READING_NICENESS)
