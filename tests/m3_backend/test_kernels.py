"""Compiled products do not pile up: told by the memory of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from m3_backend.kernels import CAPACITIES

SCRIPT = """
import sys

import torch

from m3_backend.kernels import keep_few_kernels

if "few" in sys.argv:
    keep_few_kernels()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


torch.set_num_threads(1)
weights = [torch.ones(n, 128, dtype=torch.bfloat16) for n in range(64, 72)]
before = 0
for length in range(1, 151):
    for weight in weights:
        torch.nn.functional.linear(torch.ones(length, 128, dtype=torch.bfloat16), weight)
    if length == 50:
        before = resident()
print(resident() - before)
"""


def growth(*arguments: str) -> int:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    # Other tests open checkpoints in this process.
    environment = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_products_of_ever_new_shapes_do_not_fill_the_memory() -> None:
    as_torch_would = growth()
    if as_torch_would < 20e6:
        pytest.skip("this processor's products need no compilation")
    assert growth("few") < as_torch_would / 3
