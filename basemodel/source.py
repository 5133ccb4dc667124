"""Where a base comes from: turns 'embedded', a folder or a Hub id into a local folder with a stable identity.

It does: find the files, downloading from the Hub only when the user named a Hub id.
It does not: read weights (`snapshot`). Nothing of a repository is executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from basemodel.errors import BaseNotFoundError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded" / "weights"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
DOWNLOADED = [*TOKENIZER_FILES, "config.json", "*.safetensors", "model.safetensors.index.json"]


@dataclass(frozen=True)
class BaseSource:
    """A base's files on this machine. `identity` changes whenever a file that matters does; `name` is for people."""

    name: str
    revision: str | None
    folder: Path
    identity: str


def find_source(source: str) -> BaseSource:
    """Resolve 'embedded', a folder, or a Hub id with an optional '@revision'. Raises BaseNotFoundError."""
    if source == EMBEDDED:
        return BaseSource(EMBEDDED, None, EMBEDDED_FOLDER, _content_identity(source, EMBEDDED_FOLDER))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return BaseSource(folder.resolve().name, None, folder.resolve(), _stat_identity(source, folder.resolve()))
    repo, _, revision = source.partition("@")
    return _from_hub(source, repo, revision or None)


def _from_hub(source: str, repo: str, revision: str | None) -> BaseSource:
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=DOWNLOADED))
    except LocalEntryNotFoundError as error:
        reason = (
            f"it is no local folder, not in the Hub cache, and the Hub ({constants.ENDPOINT}) was not reached: look at "
            "the network, and at HF_ENDPOINT where it is set"
        )
        raise BaseNotFoundError(source, reason) from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise BaseNotFoundError(source, f"it is no local folder, and the Hub answered: {error}") from error
    commit = folder.name
    return BaseSource(repo, commit, folder, f"hub:{repo}@{commit}")


def _files(source: str, folder: Path) -> list[Path]:
    if not (folder / "config.json").is_file():
        raise BaseNotFoundError(source, f"{folder} has no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BaseNotFoundError(source, f"{folder} has no *.safetensors file (pickled weights are not read)")
    return [folder / "config.json", *weights, *(folder / n for n in TOKENIZER_FILES if (folder / n).is_file())]


def _content_identity(source: str, folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(source, folder):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return f"content:{digest.hexdigest()}"


def _stat_identity(source: str, folder: Path) -> str:
    """Size and time of each file: reading tens of gigabytes to find a cached snapshot would cost more than it saves."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(source, folder)]
    return f"folder:{folder}:{hashlib.sha256(json.dumps(stats).encode()).hexdigest()}"
