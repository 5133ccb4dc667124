"""Types are read from any thread: msgspec alone ends the process where two threads meet at the first use of a type."""

from __future__ import annotations

import subprocess
import sys

THREADS_MEET = """
import sys, threading, types
from registry.decoding import convert, decode
SOURCE = '''
from __future__ import annotations
from typing import Annotated
import msgspec
class Outer(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1)]
    inner: list[Inner] | None = None
class Inner(msgspec.Struct):
    counts: dict[str, int] | None = None
'''
sys.setswitchinterval(1e-6)
for turn in range(60):
    module = types.ModuleType(f"types_{turn}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    barrier = threading.Barrier(4)
    found = []
    def read(part):
        barrier.wait()
        document = {"number": 1, "inner": [{"counts": {"a": 1}}]}
        read_one = convert if part % 2 else lambda given, kind: decode(b'{"number": 1}', kind)
        found.append(read_one(document, module.Outer).number)
    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4
"""


def test_threads_that_meet_at_a_type_read_it() -> None:
    """In a process of its own: what this holds off is a segmentation fault."""
    done = subprocess.run([sys.executable, "-c", THREADS_MEET], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
