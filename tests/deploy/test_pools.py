"""Pools in the configuration, the application that it makes, and what they are together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deploy.app import ServeArgs, build
from deploy.config import Config, ConfigError, parse
from deploy.pools import joined
from m3_backend.costs import CostModel
from m3_backend.messages import ModelInfo
from tests.deploy.test_app import deployments
from tests.fakes import MODEL

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
SLOW = replace(MODEL, costs=CostModel(99.0, 9.0, 0.9, 9.0))


def documented() -> Config:
    """The example of docs/operations.md."""
    text = PAGE.read_text(encoding="utf-8").partition("## Pools")[2]
    example = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    return parse({**yaml.safe_load(example), "cache": {"redis": "redis://x"}}, source="the page")


def test_the_documented_example_makes_a_deployment_of_each_pool() -> None:
    config = documented()
    built = deployments(build(ServeArgs(config=config)))
    coarse, fine = built["M3Replica-coarse"], built["M3Replica-fine"]
    assert "M3Replica" not in built
    assert coarse.num_replicas == 4
    assert coarse.ray_actor_options["num_cpus"] == 4
    assert not coarse.ray_actor_options.get("num_gpus")
    assert fine.ray_actor_options["num_gpus"] == 1
    assert fine.max_ongoing_requests == 4 * 32
    of_fine, of_coarse = config.pools["fine"], config.pools["coarse"]
    assert (of_fine.model.max_batch, of_coarse.model.max_batch) == (32, 16)
    assert (of_fine.threads, of_coarse.threads) == (1, 4)
    assert of_fine.shadow_labels
    assert not of_coarse.shadow_labels


def test_without_pools_there_is_one_for_everything() -> None:
    assert Config().pools == {"": Config()}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"a": {"scals": [9]}}, r"serve\.pools\.a\.scals: unknown key; did you mean scales\?"),
        ({"a": {}}, r"serve\.pools\.a\.scales"),
        ({"a": {"scales": []}}, r"serve\.pools\.a\.scales"),
        ({"a": {"scales": [9, 9]}}, "twice"),
        ({"A b": {"scales": [9]}}, r"serve\.pools"),
        ({"a": {"scales": [9], "replicas": 99}}, "max_ongoing_requests: must be above"),
    ],
)
def test_what_cannot_be_meant_is_refused(pool: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"serve": {"pools": pool}}, source="here")


def test_pools_together_are_the_model_with_the_costs_of_the_finest() -> None:
    info = joined({"coarse": ((9, 1, 36), SLOW), "fine": ((144, 576), MODEL)})
    assert [(pool.name, pool.scales) for pool in info.pools] == [
        ("coarse", (1, 9, 36)),
        ("fine", (144, 576)),
    ]
    assert info.costs == MODEL.costs
    assert info.pools[0].costs == SLOW.costs
    assert replace(info, pools=()) == MODEL


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"a": ((1, 9, 36), MODEL)}, "no pool serves scale 144 of fake"),
        ({"a": ((1, 10), MODEL)}, r"serve\.pools\.a\.scales: fake has no scale 10; it has 1, 9"),
        (
            {"a": ((1, 9), MODEL), "b": ((36, 144, 576), replace(MODEL, identity="f" * 64))},
            "b and a serve different models",
        ),
    ],
)
def test_pools_that_do_not_fit_the_model_start_nothing(
    told: dict[str, tuple[tuple[int, ...], ModelInfo]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        joined(told)
