"""Packages from the npm registry that tests need: by lock file, into a cache, once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FILES = ("package.json", "package-lock.json")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m3-router-tests"


def installed(sources: Path) -> Path:
    """A folder whose `node_modules` has what the lock file in `sources` names. Skips the test where
    there is no npm.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    lock = b"".join((sources / name).read_bytes() for name in FILES)
    folder = CACHE / f"js-{hashlib.sha256(lock).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # several test runs may share the cache
        if not (folder / "done").exists():
            for name in FILES:
                shutil.copy(sources / name, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
            (folder / "done").touch()
    return folder
