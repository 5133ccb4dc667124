"""Requests to an object store through obstore: each one bounded in time, repeated a few times, and explained.

obstore repeats what failed with 5xx, was cut off, or never connected; this repeats the rest (a request that timed out
while it sent, a body that broke off), because all that is asked here may be asked twice. What is read is read in ranges
of one object, pinned by its ETag: no request takes longer than one range does, and no two states of an object mix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from registry.blobs.object_address import ObjectAddress
from registry.errors import StorageError

RANGE_BYTES = 8 << 20
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
LISTED_AT_ONCE = 1000
SHOWN_CHARACTERS = 300
T = TypeVar("T")
_ANSWERS = (
    FileNotFoundError,
    exceptions.PreconditionError,
    exceptions.AlreadyExistsError,
    exceptions.NotSupportedError,
)
"""What a store says that works: the callers here know what it means."""
_KINDS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {"s3": (S3Store, "endpoint"), "gs": (GCSStore, "base_url"), "az": (AzureStore, "endpoint")}
)
"""By scheme: the store, and what it calls the address of its server."""


@dataclass(frozen=True)
class Patience:
    """How long a store may take: a range or a part fails after attempts x retry_seconds at the latest."""

    connect_seconds: float = 5.0
    request_seconds: float = 30.0
    retries: int = 4
    retry_seconds: float = 60.0
    attempts: int = 3
    pause_seconds: float = 0.2


@dataclass(frozen=True)
class ObjectState:
    """What a store says of an object. `mark` changes whenever the object is replaced."""

    key: str
    size: int
    modified_at: datetime
    e_tag: str | None

    @property
    def mark(self) -> tuple[str | None, int]:
        """What the object looks like."""
        return (self.e_tag, self.size)


class ObjectReplacedError(Exception):
    """The object is not the one any more whose ETag was given."""


class ObjectClient:
    """One bucket, below one prefix. Keys are relative to the prefix. Threads may share it."""

    def __init__(self, address: ObjectAddress, patience: Patience) -> None:
        self.address = address
        self._patience = patience
        self._store = _open_store(address, patience)

    def put(self, key: str, path: Path, size: int) -> ObjectState:
        """Write a local file to a key, all at once: nobody sees a part of it.

        What is there is asked for: no store promises that an object of parts has the ETag that it was announced with.
        """
        self._put(key, path, size, {"chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE})
        state = self.head(key)
        if state is None:
            raise self._failed(FileNotFoundError(f"{key} was written and is not there"))
        return state

    def create(self, key: str, path: Path, size: int) -> ObjectState | None:
        """As `put` of a small file, if nothing is there; None where something is, or the store cannot do this."""
        try:
            return self._put(key, path, size, {"mode": "create", "use_multipart": False})
        except (exceptions.AlreadyExistsError, exceptions.NotSupportedError):
            return None

    def _put(self, key: str, path: Path, size: int, options: Any) -> ObjectState:
        try:
            made = self._repeated(lambda: obstore.put(self._store, self._full(key), path, **options))
        except FileNotFoundError as error:
            raise self._failed(error) from error
        return ObjectState(key, size, datetime.now(UTC), made["e_tag"])

    def head(self, key: str) -> ObjectState | None:
        """The state of a key; None where there is no object."""
        try:
            return self._state(self._repeated(lambda: obstore.head(self._store, self._full(key))))
        except FileNotFoundError:
            return None

    def read(self, state: ObjectState, start: int, end: int) -> bytes:
        """A range of the object in this very state. Raises ObjectReplacedError, FileNotFoundError, StorageError."""
        options: Any = {"range": (start, end), "if_match": state.e_tag}

        def get() -> bytes:
            found = obstore.get(self._store, self._full(state.key), options=options).bytes()
            if len(found) != end - start:
                raise exceptions.GenericError(f"{len(found)} bytes came instead of {end - start}")
            return bytes(found)

        try:
            return self._repeated(get)
        except exceptions.PreconditionError as error:
            raise ObjectReplacedError(state.key) from error

    def chunks(self, state: ObjectState, start: int, end: int) -> Iterator[bytes]:
        """The range in pieces of bounded size. Raises as `read`."""
        for offset in range(start, end, RANGE_BYTES):
            yield self.read(state, offset, min(end, offset + RANGE_BYTES))

    def copy(self, source: str, target: str) -> None:
        """Copy within the store. Raises FileNotFoundError, StorageError."""
        self._repeated(lambda: obstore.copy(self._store, self._full(source), self._full(target)))

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is removed already."""
        try:
            self._repeated(lambda: obstore.delete(self._store, self._full(key)))
        except FileNotFoundError:
            return

    def all(self, folder: str) -> Iterator[ObjectState]:
        """Every object below a folder of keys."""
        try:
            stream = obstore.list(self._store, prefix=self._full(folder), chunk_size=LISTED_AT_ONCE)
            while (page := self._explained(lambda: next(stream, None))) is not None:
                yield from (self._state(meta) for meta in page)
        except FileNotFoundError as error:
            raise self._failed(error) from error

    def sign(self, method: Any, key: str, seconds: int) -> str:
        """A presigned address."""
        store: Any = self._store
        return self._repeated(lambda: obstore.sign(store, method, self._full(key), timedelta(seconds=seconds)))

    def _full(self, key: str) -> str:
        return self.address.prefix + key

    def _state(self, meta: Any) -> ObjectState:
        key = meta["path"].removeprefix(self.address.prefix)
        return ObjectState(key, meta["size"], meta["last_modified"], meta["e_tag"])

    def _repeated(self, ask: Callable[[], T]) -> T:
        """Ask, and again after a failure that may pass. Raises StorageError, FileNotFoundError, PreconditionError."""
        for attempt in range(1, self._patience.attempts):
            try:
                return ask()
            except exceptions.GenericError:
                time.sleep(self._patience.pause_seconds * 2 ** (attempt - 1))
        return self._explained(ask)

    def _explained(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except _ANSWERS:
            raise
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StorageError:
        shown = " ".join(str(error).split())[:SHOWN_CHARACTERS]
        return StorageError(
            f"The blobs at {self.address} cannot be used ({shown}). "
            "Check that the store can be reached, that the bucket exists, and that the environment has the credentials."
        )


def _open_store(address: ObjectAddress, patience: Patience) -> Any:
    options: Any = {
        "connect_timeout": timedelta(seconds=patience.connect_seconds),
        "timeout": timedelta(seconds=patience.request_seconds),
        "allow_http": address.endpoint is not None and address.endpoint.startswith("http://"),
    }
    retries: Any = {"max_retries": patience.retries, "retry_timeout": timedelta(seconds=patience.retry_seconds)}
    kind, named = _KINDS[address.scheme]
    given = {"account_name": address.account, named: address.endpoint, "region": address.region}
    config: Any = {name: value for name, value in given.items() if value is not None}
    try:
        return kind(address.bucket, config=config, client_options=options, retry_config=retries)
    except (exceptions.BaseError, OSError, ValueError) as error:
        shown = " ".join(str(error).split())[:SHOWN_CHARACTERS]
        raise StorageError(f"The blobs at {address} cannot be used ({shown}). Correct the address.") from error
