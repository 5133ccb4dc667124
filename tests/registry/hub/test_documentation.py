"""docs/hub.md is run as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from registry.hub import commit, context, preupload
from registry.tree_changes import FILES_LIMIT
from registry.tree_paths import REFUSED_SUFFIXES, is_byproduct
from tests.registry.hub.conftest import Server

PAGE = Path(__file__).parents[3] / "docs" / "hub.md"


@pytest.mark.sqlite_only
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
def test_the_page_runs(
    server: Server, api: HfApi, make_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"endpoint": server.url, "token": api.token, "folder": make_adapter()}
    exec(compile(block, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1] == "['v1']"
    assert (Path(str(names["path"])) / "adapter_model.safetensors").read_bytes() == Path(
        str(names["weights"])
    ).read_bytes()


def test_the_page_names_the_limits() -> None:
    page = PAGE.read_text()
    assert f"| {FILES_LIMIT:,} |" in page
    assert f"{commit.INLINE_BYTES_LIMIT // 1_000_000} MB; clients" in page
    assert f"{commit.LINES_LIMIT - 1:,} operations, {context.COMMIT_BYTES_LIMIT >> 20} MiB" in page
    assert f"{context.UPLOAD_BYTES_LIMIT >> 30} GiB; in parts of {context.PART_BYTES >> 20} MiB" in page
    assert f"{context.UPLOAD_SECONDS // 3600} hours" in page
    assert preupload.FILES_LIMIT >= 256, "what clients ask about at once"
    assert {".bin", ".pt", ".pth", ".ckpt"} <= REFUSED_SUFFIXES
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "runs/x/events"):
        assert is_byproduct(name)
