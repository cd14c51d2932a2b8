"""Processes that outlive their parent become ours, and end with us."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@contextmanager
def none_left() -> Iterator[None]:
    """On leaving, ends every process that came from this one and is still there.

    Ray ends its own processes, but some of them only notice after a while, or never if they were
    just starting. Only Linux lets a process adopt orphans; elsewhere this does nothing.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        while left := _children():  # ending one may make its children ours
            for child in left:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def _children() -> list[int]:
    """Process ids whose parent this process is, zombies included."""
    return [
        int(child)
        for thread in Path("/proc/self/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
