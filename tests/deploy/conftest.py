"""A Ray of the tests' own, as closed to others as the service's."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import init_ray, private_folder

# Ray reads these when it is imported, which the test modules do: on this machine only, behind a
# token, and nothing written into the home folder.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Path]:
    """A local Ray with room for eight processes; gives its folder."""
    import ray

    with private_folder() as folder:
        init_ray(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(folder),
        )
        yield folder
        ray.shutdown()
