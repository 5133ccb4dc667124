"""One repository on another Hub, read by the Hub protocol: which commit a revision is, and that commit's adapter files.

Only what can belong to an adapter is fetched, by name and within its limits; every file is compared with the size and
digest that the upstream's own tree gives for it. Xet is never asked for, and its headers are not looked at. A token
goes to the upstream's own origin only; redirects to other hosts (to where a Hub keeps its files) are followed without
it, over https, to public addresses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from registry.adapter_files import FILES_LIMIT, limit_bytes_of
from registry.decoding import decode
from registry.errors import ForbiddenAddressError, InvalidValueError, NotFoundError, UpstreamError
from registry.outbound import Answer, OutboundPolicy, exchange

METADATA_BYTES = 4_000_000
METADATA_SECONDS = 30.0
FILE_SECONDS = 3600.0
CHUNK_BYTES = 1 << 20
REDIRECTS_LIMIT = 5
REVISION_CHARACTERS = 200
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PART = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,96}(?<!\.)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


class _Lfs(msgspec.Struct, frozen=True):
    oid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, frozen=True):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, frozen=True):
    sha: str


@dataclass(frozen=True)
class Upstream:
    """A repository at an endpoint. The operator has named it, so its host may be on a private network."""

    endpoint: str
    repository: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, *, token: str | None = None) -> Upstream:
        """Parse `https://host/org/repo`, with any path before `org`. Raises InvalidValueError."""
        parts = urlsplit(url)
        pieces = parts.path.strip("/").split("/")
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        if not is_web or "@" in parts.netloc or len(pieces) < 2 or not all(map(_PART.fullmatch, pieces)):
            raise InvalidValueError(
                "from", f"{url[:200]!r} is not an address such as https://huggingface.co/acme/text2sql"
            )
        prefix = "/".join(pieces[:-2])
        endpoint = f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")
        return cls(endpoint, "/".join(pieces[-2:]), token)

    @property
    def url(self) -> str:
        """Where people look at it."""
        return f"{self.endpoint}/{self.repository}"

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, tag or commit is now. Raises NotFoundError, UpstreamError."""
        if not revision or len(revision) > REVISION_CHARACTERS or not revision.isprintable():
            raise InvalidValueError("revision", f"it is not 1 to {REVISION_CHARACTERS} printable characters")
        info: _Info = self._json(f"/api/models/{self.repository}/revision/{quote(revision, safe='')}", _Info)
        if not _COMMIT.fullmatch(info.sha):
            raise UpstreamError(self._host, "the commit that it names is none")
        return info.sha

    def fetch(self, commit: str, folder: Path) -> list[str]:
        """Download the commit's adapter files into a folder, and return their names.

        Raises UpstreamError: also for a file that is not what the upstream's tree says.
        """
        entries = [
            entry
            for entry in self._json(f"/api/models/{self.repository}/tree/{commit}?recursive=false", list[_Entry])
            if entry.type == "file" and "/" not in entry.path and limit_bytes_of(entry.path) is not None
        ]
        if len(entries) > FILES_LIMIT:
            raise UpstreamError(self._host, f"{self.repository} has more than {FILES_LIMIT} adapter files")
        for entry in entries:
            self._download(commit, entry, folder / entry.path)
        return [entry.path for entry in entries]

    def _download(self, commit: str, entry: _Entry, destination: Path) -> None:
        size = entry.size if entry.lfs is None else entry.lfs.size
        limit_bytes = limit_bytes_of(entry.path)
        if limit_bytes is None or not 0 <= size <= limit_bytes:
            raise UpstreamError(self._host, f"{entry.path} is larger than an adapter's may be")
        sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        path = f"/{self.repository}/resolve/{commit}/{quote(entry.path)}"
        left = size
        with self._get(path, seconds=FILE_SECONDS) as answer, destination.open("xb") as target:
            while piece := answer.read(min(CHUNK_BYTES, left + 1)):
                left -= len(piece)
                if left < 0:
                    break
                sha256.update(piece)
                git.update(piece)
                target.write(piece)
        found, expected = (git.hexdigest(), entry.oid) if entry.lfs is None else (sha256.hexdigest(), entry.lfs.oid)
        if left != 0 or found != expected:
            raise UpstreamError(self._host, f"{entry.path} is damaged: it is not what the upstream's own tree says")

    def _json(self, path: str, kind: Any) -> Any:
        with self._get(path, seconds=METADATA_SECONDS) as answer:
            raw = b""
            while piece := answer.read(CHUNK_BYTES):
                raw += piece
                if len(raw) > METADATA_BYTES:
                    raise UpstreamError(self._host, f"it answered with more than {METADATA_BYTES} bytes")
        try:
            return decode(raw, kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UpstreamError(self._host, "its answer is not what the Hub protocol says") from error

    @contextmanager
    def _get(self, path: str, *, seconds: float) -> Iterator[Answer]:
        """A successful answer, after a few redirects at most."""
        url = self.endpoint + path
        for _ in range(REDIRECTS_LIMIT):
            with exchange("GET", url, policy=self._policy(url), seconds=seconds, headers=self._headers(url)) as answer:
                if answer.status == 200:
                    yield answer
                    return
                location = answer.header("location")
                if answer.status in (401, 403, 404):
                    raise NotFoundError("repository", self.url, "Check its name, its revision and the token.")
                if answer.status not in REDIRECTS or location is None:
                    raise UpstreamError(self._host, f"it answered {answer.status}")
                url = urljoin(url, location)
        raise UpstreamError(self._host, "it redirects again and again")

    def _policy(self, url: str) -> OutboundPolicy:
        """The host that the operator named may be anywhere; others are public, over https."""
        if _origin(url) == _origin(self.endpoint):
            return OutboundPolicy(allows_http=url.startswith("http://"), hosts=(self._host,))
        return OutboundPolicy()

    def _headers(self, url: str) -> dict[str, str]:
        if self.token is None or _origin(url) != _origin(self.endpoint):
            return {}
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def _host(self) -> str:
        return urlsplit(self.endpoint).hostname or ""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ForbiddenAddressError(url, "it is no URL") from error
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)
