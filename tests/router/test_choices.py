"""What callers can ask of the choice, each over the API: the scale changes as documented, and the
response says when the promise is void.

The predictor finds 36 tokens enough at the service's own bound of 5% and 144 at 1%; an image token
costs 0.1 ms on top of 15.6 ms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import QUESTION, app_of, chat, client_of, image_part, picture, user

BIG = picture(size=(9, 9))


@dataclass(frozen=True)
class Told:
    """What headers and body agree on."""

    scale: list[int]
    reason: list[str]
    max_regret: float | None
    notes: list[str]


async def asked(body: dict[str, Any], predictor: FakePredictor | None = None) -> Told:
    """The same decision from all that report it: an answer, a stream and `/v1/route`."""
    told = []
    async with client_of(app_of(FakeBackend(), predictor or FakePredictor())) as client:
        for path, options in (
            ("/v1/chat/completions", {}),
            ("/v1/chat/completions", {"stream": True}),
            ("/v1/route", {}),
        ):
            response = await client.post(path, json=body | options)
            assert response.status_code == 200, response.text
            if options:
                events = [json.loads(e[6:]) for e in response.text.split("\n\n")[:-2]]
                [m3] = [event["m3"] for event in events if "m3" in event]
            else:
                m3 = response.json()["m3"]
            head = response.headers
            assert head["x-m3-scale"] == ",".join(map(str, m3["scale"]))
            assert head["x-m3-reason"] == ",".join(m3["reason"])
            bound = "void" if m3["max_regret"] is None else f"{m3['max_regret']:g}"
            assert head["x-m3-max-regret"] == bound
            told.append(Told(m3["scale"], m3["reason"], m3["max_regret"], m3["notes"]))
    assert told[0] == told[1] == told[2]
    return told[0]


async def one(detail: str | None = None, **m3: Any) -> Told:
    return await asked(chat(image_part(detail=detail), QUESTION, m3=m3))


async def test_nothing_asked_for() -> None:
    assert await one() == Told([36], ["predicted"], 0.05, [])


@pytest.mark.parametrize(
    ("bound", "scale", "reason"),
    [
        (0.0, 576, "no_threshold"),
        (0.01, 144, "predicted"),
        (0.04, 144, "predicted"),  # between two bounds the stricter one's price holds
        (0.05, 36, "predicted"),
        (0.2, 9, "predicted"),
    ],
)
async def test_max_regret(bound: float, scale: int, reason: str) -> None:
    assert await one(max_regret=bound) == Told([scale], [reason], bound, [])


@pytest.mark.parametrize("scale", [1, 9, 36, 144, 576])
async def test_scale(scale: int) -> None:
    """Forced, by either name: nothing is promised, whatever the scale."""
    expected = Told([scale], ["forced"], None, [])
    assert await one(scale=scale) == expected
    assert await asked(chat(model=f"m3-{scale}")) == expected


async def test_min_scale() -> None:
    assert await one(min_scale=9) == Told([36], ["predicted"], 0.05, [])
    assert await one(min_scale=144) == Told([144], ["floor"], 0.05, [])
    assert await one(min_scale=576) == Told([576], ["floor"], 0.05, [])


async def test_max_scale() -> None:
    assert await one(max_scale=9) == Told([9], ["ceiling"], None, [])
    assert await one(max_scale=144) == Told([36], ["predicted"], None, [])  # changed nothing; void
    assert await one(max_scale=576) == Told([36], ["predicted"], 0.05, [])
    assert await one(max_scale=9, max_regret=0.01) == Told([9], ["ceiling"], None, [])


async def test_both_at_once() -> None:
    assert await one(min_scale=9, max_scale=9) == Told([9], ["ceiling"], None, [])


async def test_latency_budget() -> None:
    assert await one(latency_budget_ms=80) == Told([36], ["predicted"], 0.05, [])
    assert await one(latency_budget_ms=20) == Told([36], ["predicted"], None, [])
    assert await one(latency_budget_ms=17) == Told([9], ["latency_budget"], None, [])
    exceeded = Told([1], ["latency_budget"], None, ["latency_budget_exceeded"])
    assert await one(latency_budget_ms=1) == exceeded


async def test_detail() -> None:
    assert await one("auto") == Told([36], ["predicted"], 0.05, [])
    assert await one("high") == Told([144], ["detail_high"], 0.05, [])
    assert await one("low") == Told([36], ["predicted"], None, [])  # bounded, and so void
    assert await one("low", max_regret=0.01) == Told([36], ["detail_low"], None, [])


async def test_detail_gives_way_to_explicit_limits() -> None:
    assert await one("high", max_scale=9) == Told([9], ["ceiling"], None, [])
    assert await one("low", min_scale=144) == Told([144], ["floor"], None, [])
    assert await one("high", latency_budget_ms=17) == Told([9], ["latency_budget"], None, [])


async def test_several_images_each_get_their_own() -> None:
    """The bound is shared: 5% ÷ 2 is as strict as 1% here. One image's limit voids all of it."""
    two = chat(image_part(), image_part(BIG), QUESTION)
    assert await asked(two) == Told([144, 144], ["predicted"] * 2, 0.05, [])
    loose = two | {"m3": {"max_regret": 0.1}}
    assert await asked(loose) == Told([36, 36], ["predicted"] * 2, 0.1, [])
    mixed = chat(image_part(), image_part(BIG, "low"), image_part(BIG, "high"), QUESTION)
    assert await asked(mixed | {"m3": {"max_regret": 0.2}}) == Told(
        [36, 36, 144], ["predicted", "predicted", "detail_high"], None, []
    )


async def test_turns_are_judged_by_the_last_question() -> None:
    sure, hard = (0.9,) * 5, (0.0, 0.0, 0.0, 0.0, 0.9)
    predictor = FakePredictor(p_by_question={"Is it dark?": sure, "Read the sign.": hard})
    first = user(image_part(), "Is it dark?")
    assert await asked({"model": "m3-auto", "messages": [first]}, predictor) == Told(
        [1], ["predicted"], 0.05, []
    )
    answer = {"role": "assistant", "content": "No."}
    turns = [first, answer, user("Read the sign.")]
    assert await asked({"model": "m3-auto", "messages": turns}, predictor) == Told(
        [576], ["predicted"], 0.05, []
    )
    back = [*turns, answer, user("Is it dark?")]
    assert await asked({"model": "m3-auto", "messages": back}, predictor) == Told(
        [1], ["predicted"], 0.05, []
    )


async def test_an_image_of_a_later_turn_shares_the_bound_too() -> None:
    turns = [
        user(image_part(), "What is this?"),
        {"role": "assistant", "content": "A square."},
        user(image_part(BIG), QUESTION),
    ]
    body = {"model": "m3-auto", "messages": turns}
    assert await asked(body) == Told([144, 144], ["predicted"] * 2, 0.05, [])
