"""The limits around the certified rule: numbers in, a decision with its reason out. Pure.

`predictor.selection.select` chooses freely first. Limits act only where that choice falls outside
them: then the same rule runs on the scales that are left. Where limits contradict each other,
`detail` gives way to the latency budget and to the model's context, and all of them give way to the
caller's floor and ceiling.

`max_regret` is a promise against the finest scale. It is in force exactly while the finest scale
stays open to the rule, so a forced scale, a ceiling below the finest (also `detail: low`), or a
latency budget or a context that the finest scale does not fit voids it, whether or not they changed
this choice. A floor only adds tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from m3_backend.errors import InvalidRequestError, InvalidScaleError
from m3_backend.scales import ScaleLadder
from predictor.selection import select
from router.errors import Code, UnknownModelError
from router.schemas import Detail, M3Options

AUTO_MODEL = "m3-auto"
MODEL_PREFIX = "m3-"

# What `detail` means on any ladder, as a share of the finest scale's tokens.
DETAIL_LOW_SHARE = 1 / 16  # at most: 36 of 576
DETAIL_HIGH_SHARE = 1 / 4  # at least: 144 of 576


class Reason(StrEnum):
    """What settled an image's scale. Stable: also labels of metrics."""

    PREDICTED = "predicted"
    NO_PREDICTOR = "no_predictor"
    NO_THRESHOLD = "no_threshold"
    FORCED = "forced"
    FLOOR = "floor"
    CEILING = "ceiling"
    LATENCY_BUDGET = "latency_budget"
    CONTEXT = "context"
    DETAIL_LOW = "detail_low"
    DETAIL_HIGH = "detail_high"
    POOL = "pool"


class Note(StrEnum):
    """What else a caller should know about a decision."""

    LATENCY_BUDGET_EXCEEDED = "latency_budget_exceeded"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller allows, on the model's ladder. A forced `scale` excludes all other limits.

    Args:
        services_own: the caller has left `max_regret` to the service.
    """

    max_regret: float
    scale: int | None = None
    min_scale: int | None = None
    max_scale: int | None = None
    latency_budget_ms: float | None = None
    services_own: bool = False


@dataclass(frozen=True, slots=True)
class ImageCase:
    """What is known about one image before the decision.

    Args:
        tokens: image tokens in the prompt at each scale, coarse to fine.
        p_success: predicted probability of success at each scale, or None without a predictor.
    """

    tokens: tuple[int, ...]
    p_success: tuple[float, ...] | None = None
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """One image's scale.

    Args:
        p_sufficient: 1 − predicted shortfall (best probability of any scale minus this scale's), in
            [0, 1]; None without a predictor.
    """

    scale: int
    reason: Reason
    p_sufficient: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Every image's scale, in order.

    Args:
        max_regret: the bound in force for the whole request, or None where the caller's limits void
            it.
        cost_ms: estimated replica time to the first token.
        loosened_from: the service's own bound, if load has put a looser one in its place.
        tightened_to: the stricter bound whose price was used (0: the finest scale), if live labels
            have broken that of the promise's own.
    """

    images: tuple[ImageChoice, ...]
    max_regret: float | None
    cost_ms: float
    notes: tuple[Note, ...] = ()
    loosened_from: float | None = None
    tightened_to: float | None = None

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(image.scale for image in self.images)


def limits_of(
    model: str, options: M3Options, ladder: ScaleLadder, default_max_regret: float
) -> Limits:
    """The caller's limits from the model name and the `m3` object.

    Raises:
        InvalidScaleError: a scale that is not on the ladder.
        InvalidRequestError: `conflicting_limits`.
        UnknownModelError: `model_not_found` (404).
    """
    named = _named_scale(model, ladder)
    for field in ("scale", "min_scale", "max_scale"):
        value = getattr(options, field)
        if value is not None:
            ladder.require(value, param=f"m3.{field}")
    if named is not None and options.scale not in (None, named):
        raise _conflict(f"The model {model!r} and 'm3.scale' name different scales.", "m3.scale")
    scale = options.scale if named is None else named
    if scale is not None:
        for field in ("max_regret", "min_scale", "max_scale", "latency_budget_ms"):
            if getattr(options, field) is not None:
                raise _conflict(
                    f"A forced scale leaves nothing to 'm3.{field}'; send one.", f"m3.{field}"
                )
    if options.min_scale and options.max_scale and options.min_scale > options.max_scale:
        raise _conflict("'m3.min_scale' is finer than 'm3.max_scale'.", "m3.min_scale")
    return Limits(
        max_regret=default_max_regret if options.max_regret is None else options.max_regret,
        scale=scale,
        min_scale=options.min_scale,
        max_scale=options.max_scale,
        latency_budget_ms=options.latency_budget_ms,
        services_own=options.max_regret is None and scale is None,
    )


def model_names(ladder: ScaleLadder) -> tuple[str, ...]:
    """What callers may put into `model`."""
    return (AUTO_MODEL, *(f"{MODEL_PREFIX}{scale}" for scale in ladder.scales))


def _named_scale(model: str, ladder: ScaleLadder) -> int | None:
    if model == AUTO_MODEL:
        return None
    for scale in ladder.scales:
        if model == f"{MODEL_PREFIX}{scale}":
            return scale
    suffix = model.removeprefix(MODEL_PREFIX)
    if suffix != model and suffix.isascii() and suffix.isdigit():
        raise InvalidScaleError(suffix, ladder.scales, param="model")
    raise UnknownModelError(model, model_names(ladder))


def _conflict(message: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(message, code=Code.CONFLICTING_LIMITS, param=param)


def decide(
    images: Sequence[ImageCase],
    ladder: ScaleLadder,
    limits: Limits,
    threshold: Callable[[float], float | None],
    cost_ms: Callable[[int], float],
    image_room: int,
) -> Decision:
    """A scale for every image of a request.

    Args:
        threshold: the price certified for a regret bound. It is asked for `max_regret` ÷ number
            of images: by the union bound, the request then keeps `max_regret` as a whole.
        cost_ms: estimated replica milliseconds to the first token of the request, given the image
            tokens of all images together. Must not decrease.
        image_room: image tokens of all images together that the model's context has room for. If
            not even the coarsest allowed scales fit, they are used, and the replica judges.
    """
    if limits.scale is not None:
        index = ladder.index(limits.scale)
        forced = tuple(choice_at(image, ladder, index, Reason.FORCED) for image in images)
        return Decision(forced, None, cost_ms(sum(choice.tokens for choice in forced)))

    tolerated = threshold(limits.max_regret / len(images))
    budget = math.inf if limits.latency_budget_ms is None else limits.latency_budget_ms
    finest = len(ladder) - 1
    cap_reason = Reason.CONTEXT  # no matter which while the cap is the finest
    for cap in range(finest, -1, -1):
        choices = tuple(
            _choose(
                image, ladder, _bounds(ladder, limits, image.detail, cap, cap_reason), tolerated
            )
            for image in images
        )
        tokens = sum(choice.tokens for choice in choices)
        cost = cost_ms(tokens)
        if tokens <= image_room and cost <= budget:
            break
        cap_reason = Reason.LATENCY_BUDGET if tokens <= image_room else Reason.CONTEXT
    finest_tokens = sum(image.tokens[-1] for image in images)
    finest_open = (
        finest_tokens <= image_room
        and cost_ms(finest_tokens) <= budget
        and all(
            _bounds(ladder, limits, image.detail, finest, cap_reason).high == finest
            for image in images
        )
    )
    return Decision(
        images=choices,
        max_regret=limits.max_regret if finest_open else None,
        cost_ms=cost,
        notes=() if cost <= budget else (Note.LATENCY_BUDGET_EXCEEDED,),
    )


def decide_under_load(
    images: Sequence[ImageCase],
    ladder: ScaleLadder,
    limits: Limits,
    bounds: Sequence[float],
    threshold: Callable[[float], float | None],
    cost_ms: Callable[[int], float],
    image_room: int,
) -> Decision:
    """`decide` for a caller who left the bound to the service, which load may have loosened.

    No image gets a finer scale than at any stricter bound. The rule alone gives none; but where
    images share a context or a latency budget, what one of them gives up another could take.

    Args:
        bounds: the service's own, then those that load has put in its place, ascending.
    """
    decision = None
    for bound in bounds:
        looser = decide(
            images, ladder, replace(limits, max_regret=bound), threshold, cost_ms, image_room
        )
        decision = looser if decision is None else _coarser(decision, looser, cost_ms)
    assert decision is not None
    return decision if len(bounds) == 1 else replace(decision, loosened_from=bounds[0])


def _coarser(one: Decision, other: Decision, cost_ms: Callable[[int], float]) -> Decision:
    """`other`, but for the images that had a coarser scale in `one`."""
    pairs = zip(one.images, other.images, strict=True)
    choices = tuple(a if a.scale < b.scale else b for a, b in pairs)
    return replace(other, images=choices, cost_ms=cost_ms(sum(c.tokens for c in choices)))


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Indices into the ladder, both included, and which limit put them there."""

    low: int
    high: int
    low_reason: Reason = Reason.FLOOR
    high_reason: Reason = Reason.CEILING


def _bounds(
    ladder: ScaleLadder, limits: Limits, detail: Detail, cap: int, cap_reason: Reason
) -> _Bounds:
    """The scales open to one image when `cap_reason` allows none finer than index `cap`."""
    low = 0 if limits.min_scale is None else ladder.index(limits.min_scale)
    high = len(ladder) - 1 if limits.max_scale is None else ladder.index(limits.max_scale)
    low_reason, high_reason = Reason.FLOOR, Reason.CEILING
    if max(cap, low) < high:
        high, high_reason = max(cap, low), cap_reason
    if detail == "low":
        coarse = [i for i, s in enumerate(ladder.scales) if s <= ladder.finest * DETAIL_LOW_SHARE]
        ceiling = max(low, coarse[-1] if coarse else 0)
        if ceiling < high:
            high, high_reason = ceiling, Reason.DETAIL_LOW
    elif detail == "high":
        floor = min(s for s in ladder.scales if s >= ladder.finest * DETAIL_HIGH_SHARE)
        floor_index = min(high, ladder.index(floor))
        if floor_index > low:
            low, low_reason = floor_index, Reason.DETAIL_HIGH
    return _Bounds(low, high, low_reason, high_reason)


def _choose(
    image: ImageCase, ladder: ScaleLadder, bounds: _Bounds, tolerated: float | None
) -> ImageChoice:
    if image.p_success is None:
        # Nothing is known about the coarser scales: the finest that is open.
        index, reason = len(ladder) - 1, Reason.NO_PREDICTOR
        left = bounds.high - bounds.low
    else:
        shares = tuple(tokens / image.tokens[-1] for tokens in image.tokens)
        index = select(image.p_success, shares, tolerated)
        reason = Reason.NO_THRESHOLD if tolerated is None else Reason.PREDICTED
        open_scales = slice(bounds.low, bounds.high + 1)
        left = select(image.p_success[open_scales], shares[open_scales], tolerated)
    if index < bounds.low:
        index, reason = bounds.low + left, bounds.low_reason
    elif index > bounds.high:
        index, reason = bounds.low + left, bounds.high_reason
    return choice_at(image, ladder, index, reason)


def choice_at(image: ImageCase, ladder: ScaleLadder, index: int, reason: Reason) -> ImageChoice:
    """The image at the scale of an index into the ladder."""
    p = image.p_success
    return ImageChoice(
        scale=ladder.scales[index],
        reason=reason,
        p_sufficient=None if p is None else 1.0 - (max(p) - p[index]),
        tokens=image.tokens[index],
    )
