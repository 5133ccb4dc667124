"""The GPU kernels compile for an H100, with bfloat16 and tensor cores: that needs no GPU, and no interpreter either.

What the interpreter forgives and a compiler does not (types that change in a loop, shapes that are no power of two,
names that are not constants) shows here. The compiler has a process of its own: this one has the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

POINTERS = {
    "x": "bf16", "a": "bf16", "b": "bf16", "out": "bf16", "query": "bf16", "keys": "bf16", "values": "bf16",
    "hidden": "fp32", "weights": "fp32",
    "members": "i32", "tiles": "i32", "parts": "i32", "ends": "i32", "blocks": "i32",
}  # fmt: skip
FLOATS = {"scaling", "softcap"}
KERNELS = {
    "lora_kernels:_shrink": {"SLICES": 3, "SPLITS": 8, "TILE": 16, "RANK": 16, "INPUT": 128},
    "lora_kernels:_expand": {"SLICES": 3, "SPLITS": 8, "TILE": 16, "RANK": 16, "OUTPUT": 64},
    "attention_kernel:_attend": {
        "SHARED": 4, "AT_ONCE": 4, "ROWS": 64, "SIZE": 128, "POSITIONS": 64, "BLOCK": 16,
        "HAS_WINDOW": True, "HAS_CAP": True,
    },
}  # fmt: skip
COMPILE = """
import importlib, json, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
kernels, pointers, floats = json.loads(sys.argv[1])
for name, constants in kernels.items():
    module, _, function = name.partition(":")
    kernel = getattr(importlib.import_module("basemodel.cuda." + module), function)
    kinds = {
        each: "constexpr" if each in constants else "*" + pointers[each] if each in pointers
        else "fp32" if each in floats else "i32"
        for each in kernel.arg_names
    }
    places = {kernel.arg_names.index(each): each for each in kernel.arg_names if each not in constants}
    aligned = {(place,): [["tt.divisibility", 16]] for place, each in places.items() if each not in floats}
    values = {(kernel.arg_names.index(each),): value for each, value in constants.items()}
    source = ASTSource(kernel, kinds, constexprs=values, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(json.dumps({"name": name, "mma": "mma" in made.asm["ptx"], "shared": made.metadata.shared}))
"""


def test_the_kernels_compile_for_an_h100() -> None:
    argument = json.dumps([KERNELS, POINTERS, sorted(FLOATS)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, argument],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in made] == list(KERNELS)
    assert all(each["mma"] for each in made), "the products do not run on tensor cores"
    assert all(each["shared"] <= 227 * 1024 for each in made)
