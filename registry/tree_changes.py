"""What a commit changes: operations on a tree give another tree, or are refused. Nothing is read or written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from registry.adapter_files import limit_bytes_of
from registry.errors import InvalidValueError, NotFoundError
from registry.file_entry import FileEntry
from registry.tree_paths import check_kind, check_path
from registry.trees import TreeFile, lfs_file

FILES_LIMIT = 10_000


@dataclass(frozen=True)
class AddFile:
    """A small file, whose content was stored and whose git name was computed by the caller."""

    file: TreeFile


@dataclass(frozen=True)
class AddLarge:
    """A file of the tenant's uploaded blobs; `size` None takes the one that the blob has."""

    path: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class DeleteFile:
    """Take a file out of the tree."""

    path: str


@dataclass(frozen=True)
class DeleteFolder:
    """Take all files below a folder out of the tree."""

    path: str


Operation = AddFile | AddLarge | DeleteFile | DeleteFolder


def apply_operations(
    before: Mapping[str, TreeFile], operations: Sequence[Operation], sizes: Mapping[str, int]
) -> dict[str, TreeFile]:
    """The tree after the operations: deletions first, as git would see one commit of all of them.

    `sizes` are those of the blobs that the tenant has. Raises NotFoundError of kind `entry`, InvalidValueError.
    """
    tree = dict(before)
    for operation in operations:
        if isinstance(operation, DeleteFile):
            if tree.pop(operation.path, None) is None:
                raise _missing_entry(operation.path)
        elif isinstance(operation, DeleteFolder):
            folder = path_of(operation)
            below = [path for path in tree if folder in ("", ".") or path.startswith(f"{folder}/")]
            if not below:
                raise _missing_entry(operation.path)
            for path in below:
                del tree[path]
    for operation in operations:
        if isinstance(operation, AddFile):
            tree[operation.file.path] = operation.file
        elif isinstance(operation, AddLarge):
            tree[operation.path] = _large_file(operation, sizes)
    _check_tree(tree)
    return tree


def _large_file(operation: AddLarge, sizes: Mapping[str, int]) -> TreeFile:
    size = sizes.get(operation.sha256)
    if size is None:
        why = f"{operation.sha256} ({operation.path!r}) was not uploaded to this tenant; upload it before the commit"
        raise InvalidValueError("oid", why)
    if operation.size not in (None, size):
        raise InvalidValueError("size", f"{operation.path!r} has {size:,} bytes, not {operation.size:,}")
    return lfs_file(operation.path, operation.sha256, size)


def _check_tree(tree: Mapping[str, TreeFile]) -> None:
    if len(tree) > FILES_LIMIT:
        raise InvalidValueError("operations", f"the repository would have more than {FILES_LIMIT:,} files")
    for path in tree:
        folder = path.rpartition("/")[0]
        while folder:
            if folder in tree:
                raise InvalidValueError("path", f"{folder!r} would be a file and a folder")
            folder = folder.rpartition("/")[0]


def _missing_entry(path: str) -> NotFoundError:
    return NotFoundError("entry", path, "A file with this name doesn't exist.")


def is_same(one: Mapping[str, TreeFile], other: Mapping[str, TreeFile]) -> bool:
    """Whether two trees have the same files with the same content."""
    return {path: (file.sha256, file.size) for path, file in one.items()} == {
        path: (file.sha256, file.size) for path, file in other.items()
    }


def version_files(tree: Mapping[str, TreeFile]) -> tuple[FileEntry, ...]:
    """The files at the root that an adapter may have."""
    return tuple(
        FileEntry(file.path, file.size, file.sha256)
        for file in sorted(tree.values())
        if "/" not in file.path and limit_bytes_of(file.path) is not None
    )


def check_operation(operation: Operation) -> None:
    """Raises InvalidNameError, InvalidValueError where the operation can be none, whatever the tree."""
    path = path_of(operation)
    if isinstance(operation, (AddFile, AddLarge)):
        check_kind(check_path(path))
    elif path not in ("", "."):  # a folder; the empty path is the root
        check_path(path)


def path_of(operation: Operation) -> str:
    """The file or folder that the operation is about."""
    if isinstance(operation, AddFile):
        return operation.file.path
    return operation.path.rstrip("/") if isinstance(operation, DeleteFolder) else operation.path
