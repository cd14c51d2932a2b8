"""Tokens from logits: the distribution that was asked for, and nobody else's influence."""

from __future__ import annotations

import math
import random

import pytest
import torch

from m3_backend.messages import Sampling
from m3_backend.sampling import choose, token_logprob

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]
LOGITS = torch.tensor([PROBABILITIES]).log()


def frequencies(sampling: Sampling, draws: int = 4000) -> list[float]:
    rng = random.Random(0)
    tokens = choose(
        LOGITS.expand(draws, -1), [sampling] * draws, [rng.random() for _ in range(draws)]
    )
    return [tokens.count(token) / draws for token in range(4)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), PROBABILITIES),
        (Sampling(temperature=1.0, top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.81), [0.5263, 0.3158, 0.1579, 0]),
        (Sampling(temperature=1.0, top_p=1e-6), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [0.6849, 0.2466, 0.0616, 0.0068]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(temperature=1e-9), [1, 0, 0, 0]),
        (Sampling(temperature=1e-42), [1, 0, 0, 0]),
    ],
)
def test_frequencies(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling) == pytest.approx(expected, abs=0.03)
    for seen, wanted in zip(frequencies(sampling), expected, strict=True):
        assert (seen == 0) == (wanted == 0)


def test_the_ends_of_the_unit_interval_give_the_ends_of_the_nucleus() -> None:
    sampling = [Sampling(temperature=1.0, top_p=0.9)]
    assert choose(LOGITS, sampling, [0.0]) == [0]
    assert choose(LOGITS, sampling, [math.nextafter(1, 0)]) == [2]


def test_a_row_is_sampled_alone_as_in_company() -> None:
    logits = torch.randn(6, 50, generator=torch.manual_seed(0))
    sampling = [Sampling(temperature=t, top_p=p) for t in (0.0, 0.7, 1.5) for p in (0.5, 1.0)]
    draws = [0.1, 0.9, 0.4, 0.7, 0.99, 0.3]
    together = choose(logits, sampling, draws)
    alone = [choose(logits[i : i + 1], [sampling[i]], [draws[i]])[0] for i in range(len(sampling))]
    assert together == alone


def test_log_probabilities_are_the_models_own() -> None:
    entry = token_logprob(LOGITS[0], 2, 2, str)
    assert entry.token == "2"
    assert entry.logprob == pytest.approx(math.log(0.15), abs=1e-5)
    assert [token for token, _ in entry.top] == ["0", "1"]
    assert entry.top[0][1] == pytest.approx(math.log(0.5), abs=1e-5)
    assert token_logprob(LOGITS[0], 2, 0, str).top == ()
