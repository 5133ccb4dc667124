"""Mapped tensors are those that safetensors itself reads, and it alone judges the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from basemodel.tensor_file import map_tensors, map_values

FILES = {
    "float32": {"b": torch.randn(3, 4), "a": torch.randn(5), "empty": torch.empty(0, 4), "one": torch.tensor(2.0)},
    "bfloat16": {"x": torch.randn(7).to(torch.bfloat16), "y": torch.randn(2, 3, 2).to(torch.bfloat16)},
    "float16": {"x": torch.randn(7).half()},
    "mixed": {"x": torch.randn(3), "y": torch.randn(4).to(torch.bfloat16), "z": torch.tensor([1, 2])},
    "integers": {"x": torch.tensor([1, 2])},
    "nothing": {},
}


def assert_same(path: Path) -> None:
    found, wanted = map_tensors(path), load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()


@pytest.mark.parametrize("name", FILES)
def test_tensors_are_those_of_safetensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(FILES[name], path, metadata={"format": "pt"})
    assert_same(path)


@pytest.mark.parametrize("padding", range(4))
def test_a_header_of_any_length_is_read(padding: int, tmp_path: Path) -> None:
    """The format asks for no alignment."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode() + b" " * padding
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.tensor([1.5, -2.0]).numpy().tobytes())
    assert_same(path)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"x": 3},
    ],
)
def test_a_damaged_file_is_refused(header: dict[str, object], tmp_path: Path) -> None:
    content = json.dumps(header).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(SafetensorError):
        map_tensors(path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorError):
        map_tensors(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        map_tensors(tmp_path / "absent.safetensors")


def test_a_file_that_has_gone_or_shrunk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Whoever reads adapters expects that one, and fails an adapter of it; torch's own would end the engine."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    assert map_values(path, 2, torch.float32).tolist() == [0, 0]
    for file, count in ((path, 3), (tmp_path / "none", 1)):
        with pytest.raises(OSError, match="cannot be mapped"):
            map_values(file, count, torch.float32)
