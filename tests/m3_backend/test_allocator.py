"""The allocator keeps what is freed: told by the page faults of a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

SCRIPT = """
import ctypes
import resource

import torch

from m3_backend.allocator import keep_freed_memory

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # huge pages come as the system likes
keep_freed_memory()
product = torch.empty(1 << 20)  # 4 MB


def rounds(number):
    for _ in range(number):
        several = [product * times for times in range(6)]
        del several


rounds(10)  # the first ones touch memory that is new to the process, whoever keeps it
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_tensors_are_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    touched = 50 * 6 * (4 << 20) // resource.getpagesize()  # and nearly all anew, as glibc comes
    assert int(done.stdout) < touched / 10
