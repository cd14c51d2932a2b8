"""Nothing outlives the service, however its processes are nested."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans")
def test_orphans_of_orphans_are_ended() -> None:
    """Every process that holds the pipe's writing end must be gone for the reading to end."""
    script = (
        "import subprocess\n"
        "from deploy.orphans import none_left\n"
        "deaf = \"trap '' TERM HUP; (sh -c 'sleep 1000; true' & sleep 1000) & echo started\"\n"
        "with none_left():\n"
        "    subprocess.Popen(['sh', '-c', deaf]).wait()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "started\n"
