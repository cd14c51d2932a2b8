"""One configuration file: defaults, changes, and errors that name the key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from deploy.config import PACKAGED, Config, ConfigError, load


def test_the_shipped_local_file_is_the_defaults() -> None:
    assert load("local.yaml") == Config()


def test_the_shipped_gpu_file_is_for_a_cluster() -> None:
    config = load("gpu.yaml")
    assert config.model.checkpoint == "mucai/llava-v1.5-7b-m3"
    assert config.model.dtype == "bfloat16"
    assert config.serve.replica.num_gpus == 1
    assert config.serve.replica.autoscaling is not None
    assert config.serve.ingress.replicas > 1
    assert config.redis_url is not None
    assert config.ray.address != "local"


def test_every_comment_in_local_yaml_is_about_a_real_key() -> None:
    """The file spells defaults out for its readers, so what it spells out must be there."""
    content = yaml.safe_load((PACKAGED / "local.yaml").read_text())
    assert set(content) == set(Config.model_fields)


def test_changes_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("serve: {port: 9000, replica: {replicas: 3}}\ncache: {memory: 1GiB}")
    config = load(file, {"serve.port": 9001, "predictor": "none"})
    assert (config.serve.port, config.serve.replica.replicas) == (9001, 3)
    assert config.cache.memory == 2**30
    assert config.predictor == "none"
    assert config.with_changes({"serve.replica.num_gpus": 1}).serve.replica.replicas == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("serve: {prot: 1}", "serve.prot: unknown key; did you mean port?"),
        ("serve: {ingress: {colour: 1}}", "serve.ingress.colour: unknown key; known keys are max_"),
        ("router: {images: {max_pixel: 1}}", "images.max_pixel: unknown key; did you mean max_pix"),
        ("model: {max_batch: many}", "model.max_batch: Input should be a valid integer"),
        ("serve: {port: 70000}", "serve.port: "),
        ("cache: {memory: lots}", "cache.memory: "),
        (
            "serve: {replica: {autoscaling: {min_replicas: 3, max_replicas: 2}}}",
            "serve.replica.autoscaling: ",
        ),
        ("ray: {address: auto}", "cache.redis: a private Redis is for ray.address 'local'"),
        (
            "serve: {replica: {max_queued_requests: 512}}",
            "serve.ingress.max_ongoing_requests: must be above 576, or overload is never refused",
        ),
        (
            "serve: {replica: {max_queued_requests: 0}}",  # which Ray does not take
            "serve.replica.max_queued_requests: ",
        ),
        ("serve: {replica: {replicas: 8}}", "must be above 576"),
        ("router: {access: {requests_per_minute: 6}}", "router.access: limits per key need `keys`"),
        ("router: {access: {cors_origins: [example.org]}}", "router.access.cors_origins: 'example"),
        ("router: {images: {remote: {hosts: ['https://a.org/']}}}", "is no host; write images.exa"),
        ("router: {images: {remote: {hosts: [A.org]}}}", "is no host"),
        ("router: {images: {remote: {hosts: [10.0.0.1]}}}", "is no host"),
        ("router: {images: {remote: {networks: [10.0.0.1/8]}}}", "router.images.remote.networks"),
        ("serve: [", "not valid YAML"),
        ("- a\n- list", "expected sections"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_remedy(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"^\S*wrong\.yaml: ") as caught:
        load(file)
    assert message in str(caught.value)


def test_every_error_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("a: 1\nserve: {b: 2}")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"Give a path or one of gpu\.yaml, local\.yaml"):
        load("nowhere.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert load(file) == Config()


def test_threads_follow_the_reserved_cpus() -> None:
    changes = {"serve.replica.num_cpus": 4}
    assert load("local.yaml", changes).threads == 4
    assert load("local.yaml", {**changes, "model.threads": 2}).threads == 2
    assert load("local.yaml", {"serve.replica.num_cpus": 0.5}).threads == 1


def test_cpus_beyond_the_threads_of_an_operation_encode_pictures() -> None:
    assert load("local.yaml", {"serve.replica.num_cpus": 4}).towers == 1
    changes = {"serve.replica.num_cpus": 4, "model.threads": 1}
    assert load("local.yaml", changes).towers == 4
    assert load("local.yaml", {"serve.replica.num_cpus": 0.5, "model.threads": 2}).towers == 1


def test_who_is_let_in_without_a_key() -> None:
    assert not Config().is_open_to_all
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org"):
        assert load("local.yaml", {"serve.host": host}).is_open_to_all
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert not load("local.yaml", {"serve.host": host}).is_open_to_all
    guarded = {"serve.host": "0.0.0.0", "router.access.keys": "keys.yaml"}
    assert not load("local.yaml", guarded).is_open_to_all


def test_lists_and_networks_survive_a_change_of_something_else() -> None:
    remote = {"hosts": ["a.example", "*.b.example:9000"], "networks": ["10.0.0.0/8", "fd00::/8"]}
    config = load("local.yaml", {"router.images.remote": remote})
    changed = config.with_changes({"serve.port": 8001})
    assert changed.router == config.router
    assert str(changed.router.images.remote.networks[1]) == "fd00::/8"


def test_it_travels_to_replicas_and_keeps_its_secret_out_of_logs() -> None:
    config = load("local.yaml", {"cache.secret": "hunter2"})
    assert pickle.loads(pickle.dumps(config)) == config
    assert "hunter2" not in repr(config)
