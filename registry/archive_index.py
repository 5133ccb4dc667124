"""What an export says of itself: versions with their files, where aliases pointed and why, and the bases.

It is the first member of an archive (`archive.py`) and the config of an OCI artifact (`oci.py`). Reading it trusts
nothing: every field has its bounds, and what it says of files is compared with the files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from registry.adapter_files import FILES_LIMIT, WEIGHTS_BYTES_LIMIT, limit_bytes_of
from registry.attestation import Attestation
from registry.decoding import decode
from registry.errors import ArchiveError
from registry.file_entry import FileEntry, digest_of_files
from registry.names import AdapterName, parse_alias
from registry.principal import Principal
from registry.publication import Publication
from registry.registry import Registry
from registry.rollback import promotions_in_force
from registry.version import AliasMove, Version, Visibility

SCHEMA = 1
VERSIONS_LIMIT = 10_000
INDEX_BYTES_LIMIT = 64_000_000
CHUNK_BYTES = 1 << 20
EVIDENCE_CHARACTERS = 9_000

_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
_Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_FileName = Annotated[str, msgspec.Meta(pattern=r"^[^/\\\\\x00-\x1f\x7f]{1,128}\Z")]
_Number = Annotated[int, msgspec.Meta(ge=1, le=999_999_999)]
_Text = Annotated[str, msgspec.Meta(max_length=10_000)]
_Short = Annotated[str, msgspec.Meta(max_length=256)]


class ArchivedFile(msgspec.Struct, frozen=True):
    """One file of a version: a plain name, never a path."""

    path: _FileName
    size: Annotated[int, msgspec.Meta(ge=0, le=WEIGHTS_BYTES_LIMIT)]
    sha256: _Hex


class ArchivedVersion(msgspec.Struct, frozen=True):
    """A version as it was exported. `number` is its number there; importing may give it another."""

    number: _Number
    digest: _Digest
    base_fingerprint: _Hex
    base_verified: bool
    message: _Text
    created_at: datetime
    created_by: _Short
    files: Annotated[tuple[ArchivedFile, ...], msgspec.Meta(min_length=1, max_length=FILES_LIMIT)]

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """The files as the registry writes them."""
        return tuple(FileEntry(file.path, file.size, file.sha256) for file in self.files)


class ArchivedMove(msgspec.Struct, frozen=True):
    """One move of an alias, as it was exported."""

    alias: _Short
    sequence: _Number
    kind: _Short
    from_number: _Number | None
    to_number: _Number | None
    actor: _Short
    evidence: _Text
    moved_at: datetime


class ArchiveIndex(msgspec.Struct, frozen=True):
    """All that an export says of itself. `versions` by number; `moves` by alias and sequence.

    `attestations` are for people to read: what another registry believed is not evidence for the gates of this one.
    """

    schema: int
    adapter: _Short
    visibility: Visibility
    versions: Annotated[tuple[ArchivedVersion, ...], msgspec.Meta(min_length=1, max_length=VERSIONS_LIMIT)]
    moves: tuple[ArchivedMove, ...] = ()
    attestations: tuple[dict[str, Any], ...] = ()
    bases: tuple[dict[str, Any], ...] = ()

    def encode(self) -> bytes:
        """The same bytes for the same index, always."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> ArchiveIndex:
        """Raises ArchiveError."""
        try:
            index = decode(raw, cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ArchiveError(f"its index cannot be read ({error})") from error
        if index.schema != SCHEMA:
            raise ArchiveError(f"its schema is {index.schema}, and this release reads {SCHEMA}")
        numbers = [version.number for version in index.versions]
        if numbers != sorted(set(numbers)):
            raise ArchiveError("its versions are not in order")
        for version in index.versions:
            names = [file.path for file in version.files]
            for file in version.files:
                limit_bytes = limit_bytes_of(file.path)
                if limit_bytes is None or file.size > limit_bytes:
                    raise ArchiveError(f"{file.path} of version {version.number} is not allowed, or too large")
            if len(names) != len(set(names)) or str(digest_of_files(version.entries)) != version.digest:
                raise ArchiveError(f"the digest of version {version.number} is not that of its files")
        return index


@dataclass(frozen=True)
class ImportedVersion:
    """A version's number in the archive, and what became of it here."""

    number: int
    publication: Publication


@dataclass(frozen=True)
class Imported:
    """The outcome of an import."""

    adapter: str
    versions: tuple[ImportedVersion, ...]
    aliases: dict[str, int]


def describe(
    reg: Registry, ref: str, principal: Principal, *, all_versions: bool
) -> tuple[ArchiveIndex, list[Version]]:
    """The index of what the reference means, and the versions, oldest first. Raises NotFoundError."""
    newest = reg.resolve(ref, principal=principal)
    versions = [newest]
    moves: list[AliasMove] = []
    attested: list[Attestation] = []
    if all_versions:
        versions = sorted(reg.list_versions(newest.adapter, principal), key=lambda version: version.number)
        for alias in sorted(reg.aliases(newest.adapter, principal)):
            moves += sorted(reg.alias_history(newest.adapter, alias, principal), key=lambda move: move.sequence)
        for version in versions:
            attested += reg.attestations(f"{version.adapter}@{version.number}", principal)
    fingerprints = sorted({version.base_fingerprint for version in versions})
    index = ArchiveIndex(
        schema=SCHEMA,
        adapter=newest.adapter,
        visibility=newest.visibility,
        versions=tuple(_archived(version) for version in versions),
        moves=tuple(_archived_move(move) for move in moves),
        attestations=tuple(msgspec.to_builtins(each) for each in attested),
        bases=tuple(reg.base(fingerprint).to_json() for fingerprint in fingerprints),
    )
    return index, versions


@contextmanager
def pulled(reg: Registry, version: Version, principal: Principal) -> Iterator[Path]:
    """The version's files, verified, in a folder that is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="loraplex-export-") as folder:
        yield reg.pull(version, Path(folder) / "version", principal=principal)


def write_file(destination: Path, size: int, read: Callable[[int], bytes], *, sha256: str) -> None:
    """Write exactly `size` bytes from `read` into a new file, and compare the digest. Raises ArchiveError."""
    digest = hashlib.sha256()
    left = size
    with destination.open("xb") as target:
        while left:
            piece = read(min(CHUNK_BYTES, left))
            if not piece:
                raise ArchiveError(f"{destination.name} is cut short")
            left -= len(piece)
            digest.update(piece)
            target.write(piece)
    if digest.hexdigest() != sha256:
        raise ArchiveError(f"{destination.name} is damaged: its digest is not the one in the index")


class Importer:
    """Publishes the versions of one index, one by one, each judged like any other. Used once, by one thread."""

    def __init__(
        self, reg: Registry, index: ArchiveIndex, principal: Principal, *, name: str | None, register_bases: bool
    ) -> None:
        self._reg = reg
        self._index = index
        self._principal = principal
        self.adapter = str(AdapterName.parse(name or index.adapter))
        self._done: list[ImportedVersion] = []
        if register_bases:
            principal.require_operator(action="register", subject="the bases of an archive")
            for document in index.bases:
                reg.register_base(document)

    def take(self, archived: ArchivedVersion, folder: Path) -> None:
        """Publish a folder that holds exactly this version's files."""
        named = None if archived.base_verified else archived.base_fingerprint
        publication = self._reg.publish_outcome(
            folder, self.adapter, principal=self._principal, base_fingerprint=named, message=archived.message
        )
        if publication.version.digest != archived.digest:
            raise ArchiveError(f"version {archived.number} became another one: {publication.version.digest}")
        self._done.append(ImportedVersion(archived.number, publication))

    def finish(self, *, with_aliases: bool) -> Imported:
        """Point the aliases to where they pointed, as far as the versions are there, and say what was done."""
        numbers = {done.number: done.publication.version.number for done in self._done}
        aliases: dict[str, int] = {}
        for alias in sorted({move.alias for move in self._index.moves}) if with_aliases else ():
            parse_alias(alias)
            for move in promotions_in_force(move for move in self._index.moves if move.alias == alias):
                if move.to_number is not None and move.to_number in numbers:
                    ref = f"{self.adapter}@{numbers[move.to_number]}"
                    self._reg.promote(ref, alias, principal=self._principal, evidence=_provenance(self._index, move))
                    aliases[alias] = numbers[move.to_number]
        return Imported(self.adapter, tuple(self._done), aliases)


def _provenance(index: ArchiveIndex, move: ArchivedMove) -> str:
    source = f"imported from an archive of {index.adapter}: promoted by {move.actor} at {move.moved_at.isoformat()}"
    return source + (f": {move.evidence[:EVIDENCE_CHARACTERS]}" if move.evidence else "")


def _archived(version: Version) -> ArchivedVersion:
    return ArchivedVersion(
        number=version.number,
        digest=version.digest,
        base_fingerprint=version.base_fingerprint,
        base_verified=version.base_verified,
        message=version.message,
        created_at=version.created_at,
        created_by=version.created_by,
        files=tuple(ArchivedFile(file.path, file.size, file.sha256) for file in sorted(version.files)),
    )


def _archived_move(move: AliasMove) -> ArchivedMove:
    return ArchivedMove(
        alias=move.alias,
        sequence=move.sequence,
        kind=move.kind.value,
        from_number=move.from_number,
        to_number=move.to_number,
        actor=move.actor,
        evidence=move.evidence,
        moved_at=move.moved_at,
    )
