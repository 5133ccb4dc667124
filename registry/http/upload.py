"""Receives an adapter's files as multipart/form-data: streamed to a private folder, never into memory.

A part with a file name is a file; a part without one is an option (a short text). What can be refused by its name, its
size or its number is refused while it arrives; whether it is an adapter is judged afterwards, by the registry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from registry.adapter_files import FILES_LIMIT, limit_bytes_of, list_files
from registry.blobs import Staging
from registry.blobs.digest_behind import DigestBehind
from registry.blobs.early_writeback import EarlyWriteback
from registry.blobs.staging_area import write_all
from registry.errors import InvalidValueError, RejectedAdapterError, StorageError
from registry.file_entry import FileEntry
from registry.reasons import RejectReason
from registry.threads import Threads

OPTION_BYTES = 16_000
PARTS_LIMIT = 2 * FILES_LIMIT


@dataclass
class Upload:
    """What arrived. `receive_upload` fills it."""

    folder: Path
    options: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileEntry | None] = field(default_factory=dict)

    def staging(self) -> Staging:
        """The files, hashed as they arrived. Raises RejectedAdapterError where they are no adapter's."""
        entries = [self.files[name] for name in list_files(self.folder)]
        return Staging(self.folder, tuple(entry for entry in entries if entry is not None))


async def receive_upload(
    stream: AsyncIterator[bytes], content_type: str, folder: Path, *, options: Collection[str], threads: Threads
) -> Upload:
    """Write the parts of a body into the folder.

    Raises InvalidValueError, RejectedAdapterError, StorageError.
    """
    media_type, parameters = parse_options_header(content_type)  # type: ignore[no-untyped-call]
    if media_type != "multipart/form-data" or not parameters.get("boundary"):
        raise InvalidValueError("content-type", "it is not multipart/form-data with a boundary")
    upload = Upload(folder)
    receiver = _Receiver(upload, options)
    try:
        parser = PushMultipartParser(parameters["boundary"], max_segment_count=PARTS_LIMIT, strict=True)
        with parser:
            await threads.write_all(stream, partial(receiver.take, parser))
    except MultipartError as error:
        raise InvalidValueError("body", f"it is not multipart/form-data ({error})") from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}).", path=folder) from error
    finally:
        receiver.close()
    return upload


class _Receiver:
    """Writes what the parser finds. Mutable: the part that is arriving now; used by one thread at a time."""

    def __init__(self, upload: Upload, options: Collection[str]) -> None:
        self._upload = upload
        self._options = options
        self._name = ""
        self._target: BinaryIO | None = None
        self._writeback: EarlyWriteback | None = None
        self._value = b""
        self._left_bytes = 0
        self._digest = DigestBehind()
        self._size = 0

    def take(self, parser: PushMultipartParser, piece: bytes) -> None:
        """Parse some bytes and write what they hold."""
        for event in parser.parse(piece):
            if isinstance(event, MultipartSegment):
                self._begin(event)
            elif event is None:
                self._end()
            else:
                self._append(event)

    def close(self) -> None:
        """Close the file that has not ended."""
        self._digest.close()
        if self._target is not None:
            self._target.close()
            self._target = None

    def _begin(self, part: MultipartSegment) -> None:
        if part.filename is None:
            self._begin_option(part.name or "")
        else:
            self._begin_file(part.filename)

    def _begin_option(self, name: str) -> None:
        if name not in self._options:
            raise InvalidValueError(name[:64], "this route knows no such field of the form")
        if name in self._upload.options:
            raise InvalidValueError(name, "it is given twice")
        self._name, self._value, self._left_bytes = name, b"", OPTION_BYTES

    def _begin_file(self, name: str) -> None:
        limit_bytes = limit_bytes_of(name)
        if limit_bytes is None or "/" in name or "\\" in name:
            detail = "this file is not part of an adapter"
            raise RejectedAdapterError(RejectReason.FILE_NOT_ALLOWED, detail, file=name[:200])
        if name in self._upload.files:
            raise InvalidValueError(name, "this file is given twice")
        if len(self._upload.files) >= FILES_LIMIT:
            detail = f"there are more than {FILES_LIMIT} files"
            raise RejectedAdapterError(RejectReason.FILE_TOO_LARGE, detail)
        self._upload.files[name] = None
        self._digest, self._size = DigestBehind(), 0
        self._target = (self._upload.folder / name).open("xb", buffering=0)
        self._writeback = EarlyWriteback(self._target.fileno())
        self._name, self._left_bytes = name, limit_bytes

    def _append(self, data: bytes | bytearray) -> None:
        self._left_bytes -= len(data)
        if self._target is None:
            if self._left_bytes < 0:
                raise InvalidValueError(self._name, f"it has more than {OPTION_BYTES:,} bytes")
            self._value += data
            return
        if self._left_bytes < 0:
            detail = f"it has more than the limit of {limit_bytes_of(self._name):,} bytes"
            raise RejectedAdapterError(RejectReason.FILE_TOO_LARGE, detail, file=self._name)
        assert self._writeback is not None
        self._digest.update(data)
        write_all(self._target, data)
        self._writeback.wrote(len(data))
        self._size += len(data)

    def _end(self) -> None:
        if self._target is not None:
            assert self._writeback is not None
            self._writeback.end()
            self._upload.files[self._name] = FileEntry(self._name, self._size, self._digest.hexdigest())
            self.close()
            return
        try:
            self._upload.options[self._name] = self._value.decode()
        except UnicodeDecodeError as error:
            raise InvalidValueError(self._name, "it is not UTF-8 text") from error
