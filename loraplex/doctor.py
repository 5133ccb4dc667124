"""What `loraplex doctor` looks at: one function per check, each returning what it found and how to mend it.

No check changes anything on the machine, and none lets another fail: torch or bitsandbytes may be missing or broken,
which is why they are imported inside the checks that judge them.
"""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from loraplex.settings import PREFIX

if TYPE_CHECKING:
    from registry.registry import Registry

OpenRegistry = Callable[[], "Registry"]
Status = Literal["ok", "warning", "failed"]

GIB = 1 << 30
ADAPTERS_COUNTED = 1_000
LEAST_FREE_BYTES = 2 * GIB
LEAST_MEMORY_BYTES = 4 * GIB
LARGEST_MEAN_ERROR = 0.1
# Read by the root command, by setup, and by the tests' failpoints.
OTHER_VARIABLES = frozenset({"LORAPLEX_CONFIG", "LORAPLEX_TORCH", "LORAPLEX_INSTALL", "LORAPLEX_FAILPOINTS"})
CPU_INFO = Path("/proc/cpuinfo")
# Flags as the kernel names them, and what each one speeds up.
CPU_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)


@dataclass(frozen=True)
class Check:
    """One finding. `advice` says what to do, and is None where there is nothing to do."""

    name: str
    status: Status
    detail: str
    advice: str | None = None


def examine(
    home: Path, place: Path | str, open_registry: OpenRegistry, host: str, port: int, *, variables: Set[str]
) -> Iterator[Check]:
    """Every check, from the machine up to the server's port.

    `open_registry` opens the registry at the place; `variables` are those that some command reads.
    """
    yield check_python()
    yield check_torch()
    yield check_cpu()
    yield check_cuda()
    yield check_bitsandbytes()
    yield check_kernels()
    yield check_memory()
    yield check_settings(variables)
    yield check_home(home)
    yield check_disk(home)
    yield check_registry(place, open_registry)
    yield check_embedded_base()
    yield check_port(host, port)


def check_python() -> Check:
    """The interpreter is one that the tests run on."""
    found = platform.python_version()
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return Check("python", "ok", f"{found} on {platform.system()} {platform.machine()}")
    supported = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    return Check("python", "failed", found, f"Use Python {supported}.")


def check_torch() -> Check:
    """torch is there, and how many threads it computes with."""
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        return Check("torch", "failed", str(error), "Install it: `make setup`, or pip install 'torch>=2.11'.")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check("torch", "ok", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")


def check_cpu() -> Check:
    """The instructions that make 4-bit work on a CPU fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not CPU_INFO.is_file():
        return Check("cpu", "ok", f"{cores} cores, {platform.processor() or platform.machine()}")
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    flags = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    present = [label for flag, label in CPU_FEATURES.items() if flag in flags]
    detail = f"{cores} cores, {', '.join(present) or 'no vector extensions that matter here'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return Check("cpu", "warning", detail, "Without AVX2 everything works, slowly; prefer a newer CPU or a GPU.")
    return Check("cpu", "ok", detail)


def check_cuda() -> Check:
    """The GPU, and whether this torch can use it."""
    has_driver = shutil.which("nvidia-smi") is not None
    try:
        torch = import_module("torch")
    except (ImportError, OSError):
        return Check("cuda", "warning", "not looked for: torch does not load", "Mend torch first.")
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return Check("cuda", "ok", f"{device.name}, {device.total_memory / GIB:.0f} GiB")
    if has_driver and torch.version.cuda is None:
        advice = (
            "This torch is the CPU build: remove .venv and run `make setup` again, or LORAPLEX_TORCH=cuda make setup."
        )
        return Check("cuda", "warning", "an NVIDIA driver is installed, but torch cannot use it", advice)
    if has_driver:
        return Check(
            "cuda", "warning", "torch sees no GPU", "Compare the driver (nvidia-smi) with torch's CUDA version."
        )
    return Check("cuda", "ok", "no NVIDIA GPU: everything runs on the CPU")


def check_bitsandbytes() -> Check:
    """4-bit quantization works here: a tensor goes to NF4 and back within the error that NF4 has."""
    try:
        torch = import_module("torch")
        import_module("basemodel.four_bit")  # loads bitsandbytes without its attempt to fetch kernels
        functional = import_module("bitsandbytes.functional")
        weight = torch.linspace(-1.0, 1.0, 4096).reshape(64, 64)
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        mean_error = (functional.dequantize_4bit(packed, state) - weight).abs().mean().item()
        version = import_module("bitsandbytes").__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        advice = "Install bitsandbytes 0.50 or newer; on a CPU older than that it has no 4-bit kernels."
        return Check("bitsandbytes", "failed", f"{type(error).__name__}: {error}", advice)
    if mean_error > LARGEST_MEAN_ERROR:
        return Check("bitsandbytes", "failed", f"{version}: NF4 is off by {mean_error:.3f} of 1", "Install it again.")
    return Check("bitsandbytes", "ok", f"{version}, NF4 round trip within {mean_error:.3f} of 1")


def check_kernels() -> Check:
    """Our own CPU kernels: the fast path of the 4-bit layers."""
    try:
        library = import_module("basemodel.kernels.library")
        is_there = library.has_cpu_kernels()
        builder = import_module("basemodel.kernels.build")
        is_built = builder.library_path().exists()
    except (ImportError, OSError, RuntimeError) as error:
        return Check("kernels", "warning", f"{type(error).__name__}: {error}", "Mend torch first.")
    if is_there:
        return Check("kernels", "ok", "4-bit layers run on our own kernel (AVX512-BF16 and AMX)")
    if is_built:
        return Check("kernels", "ok", "built, but this CPU lacks AVX512-BF16 or AMX: 4-bit layers run on bitsandbytes")
    advice = f"To serve faster on a CPU, install a C++ compiler (g++), then run: {builder.build_command()}"
    return Check("kernels", "warning", "not built: 4-bit layers run on bitsandbytes", advice)


def check_memory() -> Check:
    """Enough memory for the embedded base; larger ones need about 0.6 GiB per billion parameters, and the cache."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Check("memory", "ok", "size not known on this system")
    detail = f"{total / GIB:.1f} GiB"
    if total < LEAST_MEMORY_BYTES:
        return Check("memory", "warning", detail, "Close other programs; below 4 GiB training may be killed.")
    return Check("memory", "ok", detail)


def check_settings(known: Set[str]) -> Check:
    """No variable of the environment looks like a setting that nothing reads."""
    given = sorted(name for name in os.environ if name.startswith(f"{PREFIX}_"))
    unread = [name for name in given if name not in known | OTHER_VARIABLES]
    if not unread:
        return Check("settings", "ok", f"{', '.join(given)} in the environment" if given else "none in the environment")
    close = [match for name in unread for match in difflib.get_close_matches(name, known, n=1)]
    hint = f"Did you mean {' and '.join(close)}? " if close else ""
    detail = f"{', '.join(unread)}: no command reads {'it' if len(unread) == 1 else 'them'}"
    return Check("settings", "warning", detail, f"{hint}`loraplex config` lists what can be set.")


def check_home(home: Path) -> Check:
    """The home folder, or the nearest parent that exists, can be written."""
    existing = _nearest_existing(home)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "Give another folder with --home or LORAPLEX_HOME, or mend its permissions."
        return Check("home", "failed", f"{home} cannot be written: {error.strerror}", advice)
    return Check("home", "ok", f"{home}" if existing == home else f"{home} (made when first used)")


def check_disk(home: Path) -> Check:
    """Room for snapshots, adapters and checkpoints."""
    free = shutil.disk_usage(_nearest_existing(home)).free
    detail = f"{free / GIB:.1f} GiB free at {home}"
    if free < LEAST_FREE_BYTES:
        return Check("disk", "warning", detail, "Free some space, or move the home: --home or LORAPLEX_HOME.")
    return Check("disk", "ok", detail)


def check_registry(place: Path | str, open_registry: OpenRegistry) -> Check:
    """The registry opens and can be read: a folder, or one on another machine."""
    if isinstance(place, Path) and not (place / "catalog.sqlite").is_file():
        return Check("registry", "ok", f"{place} (made at the first publish)")
    registry = import_module("registry")
    try:
        with open_registry() as opened:
            adapters = opened.page_adapters(registry.Principal.operator(), limit=ADAPTERS_COUNTED)
            bases = len(opened.bases())
    except registry.RegistryError as error:
        mend = (
            "Restore it from a backup" if isinstance(place, Path) else "See that it runs, and check --token and --blobs"
        )
        return Check("registry", "failed", str(error), f"{mend}, or give another with --registry or LORAPLEX_REGISTRY.")
    count = f"{len(adapters.items)}{'' if adapters.next_cursor is None else ' and more'}"
    return Check("registry", "ok", f"{_without_password(place)}: {count} adapters over {bases} bases")


def check_embedded_base() -> Check:
    """The base that ships with the package is complete."""
    weights: Any = files("basemodel") / "embedded" / "weights"
    missing = [
        name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (weights / name).is_file()
    ]
    if missing:
        advice = "Install loraplex again: these files are part of the package."
        return Check("embedded base", "failed", f"{', '.join(missing)} missing in {weights}", advice)
    size_bytes = len((weights / "model.safetensors").read_bytes())
    return Check("embedded base", "ok", f"{size_bytes / (1 << 20):.1f} MiB")


def check_port(host: str, port: int) -> Check:
    """Nothing else listens where `loraplex serve` would."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = "Stop what listens there, or serve on another port: loraplex serve --port N."
            return Check("port", "warning", f"{host}:{port}: {error.strerror}", advice)
    return Check("port", "ok", f"{host}:{port} is free")


def _nearest_existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _without_password(place: Path | str) -> str:
    if isinstance(place, Path):
        return str(place)
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
