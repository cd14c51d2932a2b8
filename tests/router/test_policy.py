from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3_backend.errors import ServiceError
from m3_backend.scales import M3_SCALES, ScaleLadder
from predictor.selection import WHOLE_PRICE, select
from router.policy import (
    Decision,
    ImageCase,
    Limits,
    Note,
    Reason,
    decide,
    limits_of,
    model_names,
)
from router.schemas import M3Options

LADDER = ScaleLadder()
FREE = Limits(max_regret=0.05)
RISING = (0.3, 0.6, 0.9, 0.92, 0.93)  # at the price 0.2: 36 tokens


def case(p: tuple[float, ...] | None = RISING, detail: Any = "auto") -> ImageCase:
    return ImageCase(M3_SCALES, p, detail)


def run(
    *images: ImageCase, limits: Limits = FREE, price: float | None = 0.2, room: int = 10_000
) -> Decision:
    """With a replica that takes 10 ms and 0.1 ms per image token."""
    return decide(images, LADDER, limits, lambda _: price, lambda tokens: 10 + 0.1 * tokens, room)


def told(decision: Decision) -> list[tuple[int, str]]:
    return [(image.scale, image.reason.value) for image in decision.images]


def test_the_certified_rule_decides() -> None:
    decision = run(case())
    assert told(decision) == [(36, "predicted")]
    assert decision.images[0].p_sufficient == pytest.approx(1 - (0.93 - 0.9))
    assert decision.max_regret == 0.05
    assert decision.cost_ms == pytest.approx(13.6)
    assert decision.notes == ()


def test_a_hopeless_question_costs_one_token() -> None:
    assert told(run(case((0.02, 0.02, 0.03, 0.03, 0.03)))) == [(1, "predicted")]


def test_without_a_predictor_the_finest() -> None:
    decision = run(case(None))
    assert told(decision) == [(576, "no_predictor")]
    assert decision.images[0].p_sufficient is None
    assert decision.max_regret == 0.05


def test_without_a_certified_threshold_the_finest() -> None:
    assert told(run(case(), price=None)) == [(576, "no_threshold")]


@pytest.mark.parametrize(
    ("image", "limits", "expected", "in_force"),
    [
        (case(), replace(FREE, scale=9), (9, "forced"), False),
        (case(None), replace(FREE, scale=576), (576, "forced"), False),
        (case(), replace(FREE, min_scale=144), (144, "floor"), True),
        (case(), replace(FREE, min_scale=9), (36, "predicted"), True),
        (case(), replace(FREE, max_scale=9), (9, "ceiling"), False),
        (case(), replace(FREE, max_scale=144), (36, "predicted"), False),
        (case(), replace(FREE, max_scale=576), (36, "predicted"), True),
        (case(None), replace(FREE, max_scale=144), (144, "ceiling"), False),
        (case(None, "low"), FREE, (36, "detail_low"), False),
        (case(detail="low"), FREE, (36, "predicted"), False),
        (case(detail="high"), FREE, (144, "detail_high"), True),
        (case(None, "high"), FREE, (576, "no_predictor"), True),
        # `detail` gives way to explicit limits
        (case(detail="high"), replace(FREE, max_scale=9), (9, "ceiling"), False),
        (case(None, "low"), replace(FREE, min_scale=144), (144, "detail_low"), False),
        # 10 ms + 0.1 ms per token
        (case(), replace(FREE, latency_budget_ms=68.0), (36, "predicted"), True),
        (case(), replace(FREE, latency_budget_ms=20.0), (36, "predicted"), False),
        (case(), replace(FREE, latency_budget_ms=12.0), (9, "latency_budget"), False),
        (case(None), replace(FREE, latency_budget_ms=30.0), (144, "latency_budget"), False),
        (
            case(detail="high"),
            replace(FREE, latency_budget_ms=12.0),
            (9, "latency_budget"),
            False,
        ),
    ],
)
def test_limits(
    image: ImageCase, limits: Limits, expected: tuple[int, str], in_force: bool
) -> None:
    decision = run(image, limits=limits)
    assert told(decision) == [expected]
    assert (decision.max_regret is not None) is in_force
    assert decision.notes == ()


def test_a_floor_runs_the_rule_on_what_is_left() -> None:
    """A floor must not land on a scale that is predicted to be worse than a finer one."""
    assert told(run(case((0.9, 0.2, 0.5, 0.5, 0.5)), limits=replace(FREE, min_scale=9))) == [
        (36, "floor")
    ]


def test_a_ceiling_pays_for_nothing() -> None:
    assert told(run(case((0.2, 0.2, 0.2, 0.2, 0.9)), limits=replace(FREE, max_scale=144))) == [
        (1, "ceiling")
    ]


def test_an_impossible_budget_is_said() -> None:
    decision = run(case(), limits=replace(FREE, latency_budget_ms=10.0))
    assert told(decision) == [(1, "latency_budget")]
    assert decision.notes == (Note.LATENCY_BUDGET_EXCEEDED,)
    floored = run(case(), limits=replace(FREE, min_scale=9, latency_budget_ms=10.0))
    assert told(floored) == [(9, "latency_budget")]
    assert floored.notes == (Note.LATENCY_BUDGET_EXCEEDED,)


def test_a_budget_is_for_the_whole_request() -> None:
    images = case((0.9, 0.9, 0.9, 0.9, 0.9)), case((0, 0, 0, 0, 0.9)), case((0, 0, 0, 0.9, 0.9))
    limits = replace(FREE, latency_budget_ms=10 + 0.1 * (1 + 144 + 144))
    assert told(run(*images, limits=limits)) == [
        (1, "predicted"),
        (1, "latency_budget"),
        (144, "predicted"),
    ]


def test_what_does_not_fit_the_context_is_looked_at_coarser() -> None:
    assert told(run(case(None), room=576)) == [(576, "no_predictor")]
    decision = run(case(None), case(None), room=1000)
    assert told(decision) == [(144, "context"), (144, "context")]
    assert decision.max_regret is None
    assert decision.notes == ()


def test_a_context_without_room_for_the_finest_voids_the_promise() -> None:
    decision = run(case(), room=575)
    assert told(decision) == [(36, "predicted")]
    assert decision.max_regret is None


def test_the_tighter_of_context_and_budget_is_the_reason() -> None:
    limits = replace(FREE, latency_budget_ms=10 + 0.1 * 36)
    assert told(run(case(None), limits=limits, room=200)) == [(36, "latency_budget")]
    assert told(run(case(None), limits=limits, room=20)) == [(9, "context")]


def test_nothing_gives_way_below_a_floor() -> None:
    assert told(run(case(None), limits=replace(FREE, min_scale=144), room=10)) == [(144, "context")]


def test_several_images_share_the_bound() -> None:
    asked: list[float] = []

    def threshold(bound: float) -> float:
        asked.append(bound)
        return 0.2

    images = case(), case((0.9, 0.9, 0.9, 0.9, 0.9)), case((0.1, 0.1, 0.1, 0.1, 0.9), "low")
    decision = decide(images, LADDER, FREE, threshold, lambda _: 1.0, 10_000)
    assert asked == [pytest.approx(0.05 / 3)]
    assert told(decision) == [(36, "predicted"), (1, "predicted"), (1, "detail_low")]
    assert decision.max_regret is None  # one image's ceiling voids the promise for the request


@pytest.mark.parametrize("scales", [(1,), (576,), (1, 576), (9, 36)])
@pytest.mark.parametrize("detail", ["low", "high"])
def test_detail_on_any_ladder(scales: tuple[int, ...], detail: Any) -> None:
    ladder = ScaleLadder(scales)
    image = ImageCase(scales, None, detail)
    decision = decide([image], ladder, FREE, lambda _: None, float, 10_000)
    assert decision.images[0].scale == (scales[0] if detail == "low" else scales[-1])


probability = st.floats(0, 1)
cases = st.builds(
    ImageCase,
    tokens=st.just(M3_SCALES),
    p_success=st.none() | st.tuples(*[probability] * 5),
    detail=st.sampled_from(["auto", "low", "high"]),
)
scale = st.none() | st.sampled_from(M3_SCALES)
limits_ = st.builds(
    Limits,
    max_regret=probability,
    min_scale=scale,
    max_scale=scale,
    latency_budget_ms=st.none() | st.floats(1, 500),
).filter(lambda x: not (x.min_scale and x.max_scale) or x.min_scale <= x.max_scale)
prices = st.none() | st.floats(0, 50)
rooms = st.integers(-100, 3000)


@given(st.lists(cases, min_size=1, max_size=4), limits_, prices)
def test_explicit_limits_always_hold(
    images: list[ImageCase], limits: Limits, price: float | None
) -> None:
    decision = run(*images, limits=limits, price=price)
    assert len(decision.images) == len(images)
    for choice in decision.images:
        assert (limits.min_scale or 1) <= choice.scale <= (limits.max_scale or 576)
    if limits.latency_budget_ms is not None:
        within = decision.cost_ms <= limits.latency_budget_ms
        assert within is not (Note.LATENCY_BUDGET_EXCEEDED in decision.notes)


@given(st.lists(cases, min_size=1, max_size=4), limits_, prices, rooms)
def test_the_context_holds_unless_nothing_coarser_is_allowed(
    images: list[ImageCase], limits: Limits, price: float | None, room: int
) -> None:
    decision = run(*images, limits=limits, price=price, room=room)
    if sum(choice.tokens for choice in decision.images) > room:
        assert {choice.scale for choice in decision.images} == {limits.min_scale or 1}
    if decision.max_regret is not None:
        assert 576 * len(images) <= room


@given(st.lists(cases, min_size=1, max_size=4), limits_, prices, rooms)
def test_the_reason_is_true(
    images: list[ImageCase], limits: Limits, price: float | None, room: int
) -> None:
    decision = run(*images, limits=limits, price=price, room=room)
    for image, choice in zip(images, decision.images, strict=True):
        free = run(replace(image, detail="auto"), price=price).images[0]
        if choice.reason in (Reason.PREDICTED, Reason.NO_PREDICTOR, Reason.NO_THRESHOLD):
            assert choice == free
        else:
            assert choice.scale != free.scale
            assert {
                Reason.FLOOR: limits.min_scale is not None,
                Reason.CEILING: limits.max_scale is not None,
                Reason.DETAIL_LOW: image.detail == "low",
                Reason.DETAIL_HIGH: image.detail == "high",
                Reason.LATENCY_BUDGET: limits.latency_budget_ms is not None,
                Reason.CONTEXT: sum(i.tokens[-1] for i in images) > room,
            }[choice.reason]


@given(st.lists(cases, min_size=1, max_size=4), limits_, prices)
def test_while_the_promise_holds_no_image_loses_more_than_the_price(
    images: list[ImageCase], limits: Limits, price: float | None
) -> None:
    """Against the finest scale, which is what regret is measured against."""
    decision = run(*images, limits=limits, price=price)
    assume(decision.max_regret is not None)
    for image, choice in zip(images, decision.images, strict=True):
        if image.p_success is not None and price is not None:
            chosen = image.p_success[M3_SCALES.index(choice.scale)]
            assert image.p_success[-1] - chosen <= max(price, WHOLE_PRICE) + 1e-12
        else:
            assert choice.scale == 576


@given(cases.filter(lambda c: c.p_success is not None), prices)
def test_without_limits_it_is_the_certified_rule_itself(
    image: ImageCase, price: float | None
) -> None:
    assert image.p_success is not None
    decision = run(replace(image, detail="auto"), price=price)
    shares = [scale / 576 for scale in M3_SCALES]
    assert decision.images[0].scale == M3_SCALES[select(image.p_success, shares, price)]


@given(cases, limits_, prices, st.floats(1, 500))
def test_a_smaller_budget_never_costs_more(
    image: ImageCase, limits: Limits, price: float | None, budget: float
) -> None:
    more = run(image, limits=replace(limits, latency_budget_ms=budget * 2), price=price)
    less = run(image, limits=replace(limits, latency_budget_ms=budget), price=price)
    assert less.cost_ms <= more.cost_ms or Note.LATENCY_BUDGET_EXCEEDED in less.notes


def options(**fields: Any) -> M3Options:
    return M3Options(**fields)


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        ("m3-auto", {}, Limits(0.05, services_own=True)),
        ("m3-auto", {"max_regret": 0.0}, Limits(0.0)),
        ("m3-auto", {"scale": 9}, Limits(0.05, scale=9)),
        ("m3-36", {}, Limits(0.05, scale=36)),
        ("m3-36", {"scale": 36}, Limits(0.05, scale=36)),
        (
            "m3-auto",
            {"min_scale": 9, "max_scale": 9},
            Limits(0.05, None, 9, 9, services_own=True),
        ),
        (
            "m3-auto",
            {"latency_budget_ms": 5.0},
            Limits(0.05, latency_budget_ms=5.0, services_own=True),
        ),
    ],
)
def test_limits_of(model: str, fields: dict[str, Any], expected: Limits) -> None:
    assert limits_of(model, options(**fields), LADDER, 0.05) == expected


@pytest.mark.parametrize(
    ("model", "fields", "status", "code", "param"),
    [
        ("gpt-4o", {}, 404, "model_not_found", "model"),
        ("m3-", {}, 404, "model_not_found", "model"),
        ("m3-fine", {}, 404, "model_not_found", "model"),
        ("M3-AUTO", {}, 404, "model_not_found", "model"),
        ("m3-100", {}, 400, "invalid_scale", "model"),
        ("m3-036", {}, 400, "invalid_scale", "model"),
        ("m3-auto", {"scale": 100}, 400, "invalid_scale", "m3.scale"),
        ("m3-auto", {"scale": 0}, 400, "invalid_scale", "m3.scale"),
        ("m3-auto", {"min_scale": 2}, 400, "invalid_scale", "m3.min_scale"),
        ("m3-auto", {"max_scale": 577}, 400, "invalid_scale", "m3.max_scale"),
        ("m3-9", {"scale": 36}, 400, "conflicting_limits", "m3.scale"),
        ("m3-9", {"max_regret": 0.1}, 400, "conflicting_limits", "m3.max_regret"),
        ("m3-auto", {"scale": 9, "max_regret": 0.1}, 400, "conflicting_limits", "m3.max_regret"),
        ("m3-auto", {"scale": 9, "min_scale": 9}, 400, "conflicting_limits", "m3.min_scale"),
        ("m3-auto", {"scale": 9, "max_scale": 9}, 400, "conflicting_limits", "m3.max_scale"),
        (
            "m3-auto",
            {"scale": 9, "latency_budget_ms": 5.0},
            400,
            "conflicting_limits",
            "m3.latency_budget_ms",
        ),
        (
            "m3-auto",
            {"min_scale": 144, "max_scale": 36},
            400,
            "conflicting_limits",
            "m3.min_scale",
        ),
    ],
)
def test_impossible_limits(
    model: str, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    with pytest.raises(ServiceError) as caught:
        limits_of(model, options(**fields), LADDER, 0.05)
    error = caught.value
    assert (error.status, error.code, error.param) == (status, code, param)


@pytest.mark.parametrize(
    ("model", "fields"),
    [("m3-" + "9" * 9000, {}), ("x" * 9000, {}), ("m3-auto", {"scale": 10**4000})],
)
def test_a_long_name_is_not_repeated_whole(model: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ServiceError) as caught:
        limits_of(model, options(**fields), LADDER, 0.05)
    assert len(caught.value.message) < 300
    assert "144" in caught.value.message


def test_model_names() -> None:
    assert model_names(LADDER) == ("m3-auto", "m3-1", "m3-9", "m3-36", "m3-144", "m3-576")
