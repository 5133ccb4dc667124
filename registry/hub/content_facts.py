"""What the content of an adapter's files says of a repository: PEFT's config, the parameters, the card's metadata.

A digest's content never changes, so each is read once and remembered by digest. Who may know it is decided before: only
files of a tree that the caller may read are asked about.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from registry.adapter_config import CONFIG_FILE
from registry.adapter_files import WEIGHTS_FILE
from registry.blobs import BlobStore
from registry.file_entry import Blob, FileEntry
from registry.hub.card import CARD_BYTES_LIMIT, CARD_FILE, CardError, read_card
from registry.mixture_config import GATE_FILE
from registry.snapshots import Snapshot
from registry.trees import TreeFile

T = TypeVar("T")

FACTS_KEPT = 1_024
_SHOWN_OF_CONFIG = ("base_model_name_or_path", "task_type", "peft_type", "revision")


class ContentFacts:
    """Facts by digest. Threads share it; the lock owns what is remembered. What it returns is not to be changed."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def card(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """The metadata of the tree's own card; None where it has none that can be read. Raises as `BlobStore.open`."""
        file = snapshot.files.get(CARD_FILE)
        if file is None or file.size == 0:
            return None
        return self._remembered("card", file, self._read_card)

    def config(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """The part of PEFT's config that the Hub shows, of an adapter that was judged. Raises as `BlobStore.read`."""
        file = None if snapshot.version is None else snapshot.files.get(CONFIG_FILE)
        return None if file is None else self._remembered("config", file, self._read_config)

    def parameters(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """Parameters by dtype, from the header of weights that were judged. Raises as `BlobStore.open`."""
        files = () if snapshot.version is None else snapshot.version.files
        file = next((file for file in files if file.path in (WEIGHTS_FILE, GATE_FILE)), None)
        return None if file is None else self._remembered("parameters", file, self._read_parameters)

    def _remembered(self, kind: str, file: TreeFile | FileEntry, read: Callable[[Blob], T]) -> T:
        key = (kind, file.sha256)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                known: T = self._known[key]
                return known
        found = read(Blob(file.sha256, file.size))
        with self._lock:
            self._known[key] = found
            if len(self._known) > FACTS_KEPT:
                self._known.popitem(last=False)
        return found

    def _read_card(self, blob: Blob) -> dict[str, Any] | None:
        try:
            return read_card(self._beginning(blob, CARD_BYTES_LIMIT))
        except CardError:
            return None

    def _read_config(self, blob: Blob) -> dict[str, Any]:
        document = json.loads(self._blobs.read(blob))
        return {"peft": {key: document[key] for key in _SHOWN_OF_CONFIG if document.get(key) is not None}}

    def _read_parameters(self, blob: Blob) -> dict[str, Any]:
        length = int.from_bytes(self._beginning(blob, 8), "little")
        header = json.loads(self._beginning(blob, 8 + length)[8:])
        counts: dict[str, int] = {}
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
        return {"parameters": counts, "total": sum(counts.values())}

    def _beginning(self, blob: Blob, size: int) -> bytes:
        with self._blobs.open(blob, start=0, end=min(size, blob.size)) as reader:
            return b"".join(reader)
