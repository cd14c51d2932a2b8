"""Which version of this package runs."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "m3-router"


def installed_version() -> str:
    """Of this package."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
