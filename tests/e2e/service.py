"""Starts the real command and watches over everything it leaves behind."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

COMMAND = Path(sys.executable).parent / "m3-router"
START_LIMIT_S = 180
EVENTUALLY_S = 30
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Sandbox:
    """A home and a temporary folder of one run's own, and an eye on its processes.

    The folders are under /tmp and short, because sockets lie in them.
    """

    folder: Path
    older: frozenset[int]

    @property
    def environment(self) -> dict[str, str]:
        folders = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        return os.environ | folders

    def files(self) -> list[Path]:
        """Everything that was written into the two folders and is still there."""
        return [path for path in self.folder.rglob("*") if not path.is_dir()]

    def remains(self) -> list[Path]:
        """Those that are not meant to outlive the service, as records and predictors are."""
        return [path for path in self.files() if self.state not in path.parents]

    @property
    def state(self) -> Path:
        """What this user's own service keeps."""
        return self.folder / "home/.local/state/m3-router"

    def processes(self) -> dict[int, str]:
        """Living processes that came from this one since: id and command line."""
        return {pid: line for pid, line in descendants().items() if pid not in self.older}


def descendants() -> dict[int, str]:
    """All living processes below this one, orphans included: id and command line."""
    parents, lines = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            _, _, state = (process / "stat").read_text().rpartition(") ")
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if not state.startswith("Z"):
            pid, parent = int(process.name), int(state.split()[1])
            parents[pid], lines[pid] = parent, line
    found: set[int] = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: lines[pid] for pid in found - {os.getpid()}}


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    # Orphans of our descendants become our children, and so cannot hide.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder = Path(tempfile.mkdtemp(prefix="e2e", dir="/tmp"))
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    box = Sandbox(folder, frozenset(descendants()))
    try:
        yield box
    finally:
        for process in box.processes():
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a generous time; asks often."""
    deadline = time.monotonic() + EVENTUALLY_S
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return true


@dataclass(frozen=True)
class Service:
    """A running `m3-router serve`."""

    url: str
    process: subprocess.Popen[str]
    box: Sandbox
    announcement: str

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stops it as a terminal would; gives its exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_LIMIT_S)

    def child(self, name: str) -> int:
        """The process id of a child whose command line names `name`."""
        [found] = [pid for pid, command in self.box.processes().items() if name in command]
        return found

    def metric(self, name: str) -> dict[str, float]:
        """The values of a metric by its labels, as they stand in the exposition of one ingress."""
        exposition = httpx.get(f"{self.url}/metrics").text
        lines = re.sub(r'ingress="[^"]*",?', "", exposition).splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith((name + "{", name + " "))]
        return {labels.removeprefix(name): float(value) for labels, value in pairs}


def run(*arguments: str, box: Sandbox) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [COMMAND, *arguments],
        env=box.environment,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )


def start(*arguments: str, port: int, box: Sandbox) -> Service:
    """Starts `m3-router serve` and returns when it says that it is ready."""
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", str(port), *arguments],
        env=box.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(START_LIMIT_S, process.kill)
    watchdog.start()
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if line.strip() == "JSON":  # the end of the request to copy
            break
    watchdog.cancel()
    assert process.poll() is None, "the service ended while it started"
    return Service(f"http://127.0.0.1:{port}", process, box, said)
