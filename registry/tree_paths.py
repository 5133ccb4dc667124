"""What a repository's files may be called, and which are refused: a repository is data, never code and never pickles.

check_path       the grammar of a path
check_kind       refuses code, pickles and archives by their names
check_beginning  ... and by their first bytes, whatever they are called
is_byproduct     what a training run leaves in its folder and nobody wants in a repository
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from registry.bounded_text import is_unicode
from registry.errors import InvalidNameError, InvalidValueError

PATH_CHARACTERS = 512
PART_BYTES = 255
DEPTH_LIMIT = 32
BEGINNING_BYTES = 4

REFUSED_SUFFIXES = frozenset(
    ".bin .pt .pth .pkl .pickle .ckpt .joblib .npy .npz .h5 .hdf5 .keras .pb .mar .nemo "
    ".py .pyc .pyo .pyd .pyx .ipynb .so .dll .dylib .exe .com .bat .cmd .ps1 .sh .bash .zsh .js .mjs .ts .wasm .jar "
    ".class .rb .pl .php .lua .html .htm .xhtml .zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .whl .egg".split()
)
"""Formats that hold code, or objects that run code when they are loaded, or that hide other files."""

_REFUSED_BEGINNINGS = (
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle"),
    (re.compile(rb"PK\x03\x04"), "a zip archive, as torch.save makes it"),
    (re.compile(rb"\x7fELF|MZ|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe"), "a program"),
    (re.compile(rb"\x1f\x8b"), "a compressed archive"),
    (re.compile(rb"#!"), "a script"),
)
_BYPRODUCT_NAMES = re.compile(
    r"training_args\.bin|optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|rng_state(_[0-9]+)?\.pth|"
    r"events\.out\.tfevents\..*"
)
_BYPRODUCT_FOLDERS = frozenset({"runs"})


def check_path(path: str) -> str:
    """Return the path. Raises InvalidNameError with the rule that it breaks."""
    parts = path.split("/")
    if not 1 <= len(path) <= PATH_CHARACTERS or not is_unicode(path):
        rule = f"it has 1 to {PATH_CHARACTERS} characters"
    elif not path.isprintable() or "\\" in path:
        rule = "it has no control characters and no backslash"
    elif any(part in ("", ".", "..") for part in parts):
        rule = "it is relative, with no empty part and no '.' or '..'"
    elif any(part.lower() == ".git" for part in parts):
        rule = "no part of it is '.git'"
    elif len(parts) > DEPTH_LIMIT or any(len(part.encode()) > PART_BYTES for part in parts):
        rule = f"it has at most {DEPTH_LIMIT} parts of {PART_BYTES} bytes"
    else:
        return path
    raise InvalidNameError("a file path", path, rule)


def check_kind(path: str) -> None:
    """Raises InvalidValueError where files of this name are refused."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise InvalidValueError(
            "path", f"{path!r} is refused, for {suffix} files can hold code; adapters are kept as safetensors and JSON"
        )


def check_beginning(path: str, beginning: bytes) -> None:
    """Raises InvalidValueError where a file that begins so is refused."""
    for pattern, what in _REFUSED_BEGINNINGS:
        if pattern.match(beginning):
            raise InvalidValueError("path", f"{path!r} is {what}; adapters are kept as safetensors and JSON")


def is_byproduct(path: str) -> bool:
    """Whether a training run leaves this behind: optimizer states, logs, pickled arguments."""
    parts = path.split("/")
    return parts[0] in _BYPRODUCT_FOLDERS or _BYPRODUCT_NAMES.fullmatch(parts[-1]) is not None
