"""The kernels' own threads: callers at the same time, a forked child, and one thread alone give the same bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from basemodel.kernels import build
from basemodel.kernels.library import has_cpu_kernels

pytestmark = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
FORKED = """
import os, warnings
import torch
from tests.basemodel.test_kernel_threads import product
warnings.simplefilter("ignore")
before = product(3)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(product(3), before) else 1)
print(os.waitpid(child, 0)[1])
"""


def product(seed: int) -> torch.Tensor:
    """The output head's product of 5 rows, large enough for every thread."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(rows, 512, generator=generator).to(torch.bfloat16) for rows in (5, 4096))
    out: torch.Tensor = torch.ops.loraplex.bf16_linear(x, weight, None)
    return out


@pytest.fixture
def several_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_one_thread_and_several_give_the_same_bits() -> None:
    shared = [product(seed) for seed in range(4)]
    torch.set_num_threads(1)
    assert all(torch.equal(alone, other) for alone, other in zip(map(product, range(4)), shared, strict=True))


@pytest.mark.usefixtures("several_threads")
def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    expected = [product(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as callers:
        for seed, found in zip(list(range(4)) * 25, callers.map(product, list(range(4)) * 25), strict=True):
            assert torch.equal(found, expected[seed])


def test_a_forked_child_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "0"


def test_nobody_sleeps_through_the_end_of_a_stage(tmp_path: Path) -> None:
    """With threads that sleep at once, where they otherwise look for a while: a lost wake-up hangs here."""
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    patience = "WAITING_CYCLES = 50'000"
    source = (build.FOLDER / "team.cpp").read_text()
    assert source.count(patience) == 1
    (tmp_path / "team.cpp").write_text(source.replace(patience, "WAITING_CYCLES = 0"))
    storm = tmp_path / "storm"
    files = [tmp_path / "team.cpp", Path(__file__).with_name("team_storm.cpp")]
    flags = [*build.COMMON_FLAGS, "-O2", f"-I{build.FOLDER}"]
    subprocess.run([compiler, *flags, *files, "-o", storm], check=True, timeout=100)
    subprocess.run([storm], check=True, timeout=60)
