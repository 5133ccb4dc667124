"""Compiles the CPU kernels into `basemodel/kernels/built/`. Run by setup: `python -m basemodel.kernels.build`.

It does nothing where the library is up to date, and says so where it cannot be built (no compiler, no x86-64): the
kernels are an advantage, not a condition. The library's name carries a hash of the sources and of torch's version, so
that a library of other sources or of another torch is never loaded.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

FOLDER = Path(__file__).parent
BUILT = FOLDER / "built"
KERNELS = (
    "tiles",
    "adapters",
    "strip_sums",
    "nf4_linear",
    "dense_linear",
    "paged_attention",
    "row_math",
    "factor_layout",
)
OPERATORS = ("team", "linear_job", "block_jobs", "kept_memory", "operators", "block_operators", "decoder")
COMMON_FLAGS = ("-std=c++20", "-fPIC", "-DNDEBUG", "-pthread")
# The kernels' own files alone are compiled for the newer processors; whoever loads them asks the processor first.
VECTOR_PARTS = ("f", "bw", "dq", "vl", "vbmi", "vbmi2", "bf16")
KERNEL_FLAGS = ("-O3", *(f"-mavx512{part}" for part in VECTOR_PARTS), "-mfma")
TILE_FLAGS = ("-mamx-tile", "-mamx-bf16", "-Wno-maybe-uninitialized")  # gcc 12 warns about its own header
COMPILE_SECONDS = 300


def library_path() -> Path:
    """Where the library for these sources and this torch lies, or would."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]):
        digest.update(path.read_bytes())
    return BUILT / f"libloraplex-{digest.hexdigest()[:16]}.so"


def build_command() -> str:
    """What builds the library, for a shell; with -P the installed package is meant, not the folder that one is in."""
    return f"{shlex.quote(sys.executable)} -P -m basemodel.kernels.build"


def build() -> str:
    """Build the library if it is missing; returns one line that says what was done or why it could not be."""
    target = library_path()
    if target.exists():
        return f"CPU kernels: up to date ({target.name})"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"CPU kernels: none for {sys.platform} on {platform.machine()}; bitsandbytes is used"
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return (
            "CPU kernels: no C++ compiler (c++ or g++) found; bitsandbytes is used, and answers come slower. "
            f"Install one (Debian, Ubuntu: g++), then run: {build_command()}"
        )
    BUILT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        try:
            made = _compile(compiler, Path(folder))
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines()[-1] if error.stderr.strip() else f"exit code {error.returncode}"
            return f"CPU kernels: {compiler} failed ({reason}); bitsandbytes is used"
        except subprocess.TimeoutExpired:
            return f"CPU kernels: {compiler} took over {COMPILE_SECONDS} s for one file; bitsandbytes is used"
        made.rename(target)
    for old in BUILT.glob("libloraplex-*.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return f"CPU kernels: built {target.name}"


def _compile(compiler: str, folder: Path) -> Path:
    torch_library = Path(torch.__file__).parent / "lib"
    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    library = folder / "library.so"
    for name in KERNELS:
        flags = (*COMMON_FLAGS, *KERNEL_FLAGS, *TILE_FLAGS)
        _run(compiler, *flags, "-c", FOLDER / f"{name}.cpp", "-o", folder / f"{name}.o")
    for name in OPERATORS:
        _run(compiler, *COMMON_FLAGS, "-O2", *includes, "-c", FOLDER / f"{name}.cpp", "-o", folder / f"{name}.o")
    objects = [folder / f"{name}.o" for name in (*KERNELS, *OPERATORS)]
    _run(
        compiler,
        "-shared",
        "-pthread",
        *objects,
        f"-L{torch_library}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-o",
        library,
    )
    return library


def _run(*command: str | Path) -> None:
    subprocess.run(  # noqa: S603 - the compiler, with our own arguments
        [str(part) for part in command], check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS
    )


if __name__ == "__main__":
    print(build())
