"""The allocator keeps what is freed: told by the page faults of a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys

import torch

from m3_backend.allocator import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
product = torch.empty(1 << 20)  # 4 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    several = [product * times for times in range(6)]
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_tensors_are_used_again() -> None:
    wasted = faults()
    if wasted < 20_000:
        pytest.skip("this C library keeps freed memory by itself")
    assert faults("keep") < wasted / 10
