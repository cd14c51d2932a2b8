"""The production shape on a machine without GPUs: `gpu.yaml` on a Ray cluster that was there.

The cluster has two logical GPUs, m3-tiny stands in for the released checkpoint, and Redis belongs
to somebody else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.config import load
from tests.conftest import RedisServer, start_redis, unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import COMMAND, START_LIMIT_S, Sandbox, Service, run, sandbox, start, until

GPUS = 2


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox() as box:
        yield box


@pytest.fixture(scope="module")
def cluster(box: Sandbox) -> str:
    """Address of a Ray cluster of one node with two GPUs in its books."""
    address = f"127.0.0.1:{unused_port()}"
    subprocess.run(
        [
            *(COMMAND.parent / "ray", "start", "--head", f"--num-gpus={GPUS}", "--num-cpus=8"),
            *("--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}"),
            *("--include-dashboard=false", "--disable-usage-stats"),
            f"--temp-dir={box.folder / 'ray'}",
        ],
        env=box.environment,
        timeout=START_LIMIT_S,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return address


@pytest.fixture(scope="module")
def settings(cluster: str, redis: RedisServer) -> list[str]:
    """gpu.yaml with what has to be different on this machine."""
    changes = {
        "ray.address": cluster,
        "cache.redis": redis.url,
        "model.checkpoint": "m3-tiny",
        "model.device": "cpu",
        "serve.host": "127.0.0.1",
        "serve.ingress.num_cpus": 1,
        "serve.replica.num_cpus": 1,
        "serve.replica.autoscaling.min_replicas": GPUS,
    }
    settings = [part for item in changes.items() for part in ("--set", "{}={}".format(*item))]
    return ["--config", "gpu.yaml", *settings]


@pytest.fixture(scope="module")
def service(settings: list[str], box: Sandbox) -> Service:
    return start(*settings, port=unused_port(), box=box)


def ask(service: Service, image: bytes, **options: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/chat/completions", json=chat(image, **options), timeout=60)


def misses(service: Service) -> list[float]:
    """Per replica: images that were nowhere in the cache."""
    return list(service.metric("m3_feature_cache_misses_total").values())


def test_there_is_one_replica_per_gpu(service: Service) -> None:
    assert len(service.metric("m3_replica_slots")) == GPUS
    assert set(service.metric("m3_replica_slots").values()) == {load("gpu.yaml").model.max_batch}


def test_requests_are_placed_on_both_replicas(service: Service) -> None:
    def one(seed: int) -> int:
        return ask(service, picture(seed)).status_code

    with ThreadPoolExecutor(16) as clients:
        assert set(clients.map(one, range(32))) == {200}
    assert len(misses(service)) == GPUS
    assert all(misses(service))


def test_a_second_process_finds_the_features_in_redis(
    service: Service, redis: RedisServer, tmp_path: Path
) -> None:
    image, stored = picture(1000), redis.client().dbsize()
    assert ask(service, image).headers["x-m3-cache"] == "miss"
    assert until(lambda: redis.client().dbsize() > stored)
    file = tmp_path / "picture.png"
    file.write_bytes(image)
    settings = ("--set", f"cache.redis={redis.url}", "--set", "predictor=none")
    asked = run("ask", str(file), "What is this?", "--json", *settings, box=service.box)
    assert asked.returncode == 0, asked.stderr
    m3 = json.loads(asked.stdout)["answer"]["m3"]
    assert m3["cache"] == ["redis"]
    assert m3["timings_ms"]["encode"] == 0


def test_stopping_takes_the_service_and_leaves_the_cluster(
    service: Service, cluster: str, box: Sandbox
) -> None:
    assert service.stop() == 0
    with pytest.raises((httpx.HTTPStatusError, httpx.ConnectError)):
        httpx.get(f"{service.url}/readyz").raise_for_status()
    assert any("gcs_server" in line for line in box.processes().values())


def test_it_can_be_started_again_on_the_same_port(
    service: Service, settings: list[str], box: Sandbox
) -> None:
    """Ray's proxy has stayed there, and belongs to the cluster."""
    again = start(*settings, port=int(service.url.rpartition(":")[2]), box=box)
    assert ask(again, picture(1001)).status_code == 200
    assert again.stop() == 0
