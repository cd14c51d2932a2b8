"""What somebody wants to see of the records: a view, how far back, and which requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from m3_backend.errors import InvalidRequestError, quoted
from predictor.records import Target
from router.drift import DriftState

ViewName = Literal["cost", "quality", "decisions", "frontier"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
LONGEST_FILTER = 200
LONGEST_SCALE = 7  # digits
HOUR_S = 3600
FILTERS = ("range", "key", "served", "scale", "reason", "code", "predictor")

# Seconds that a view looks back, and between its points.
RANGES = {"15m": (900, 10), "1h": (3600, 60), "6h": (21_600, 300), "24h": (86_400, 900)}
RANGES |= {"7d": (604_800, 7200), "30d": (2_592_000, 21_600)}


@dataclass(frozen=True, slots=True)
class Known:
    """What only the running service knows.

    Args:
        prefill_token_ms: replica time of one more image token, as measured at the model's start;
            None where nobody knows.
        max_regret: its own bound.
        prices: certified ones of the predictor in force, by their bound, strict to loose.
        predictor: version of the one in force.
        target: what its probabilities and its promise are about.
        uniform_share: of requests, drawn for labels whatever was decided; None where nobody knows.
        drift: of the requests of the ingress that was asked; None where nobody watches.
        drift_limit: index from which on traffic counts as other traffic.
    """

    prefill_token_ms: float | None = 0.0
    max_regret: float = 0.0
    prices: tuple[tuple[float, float], ...] = ()
    predictor: str | None = None
    target: Target | None = None
    uniform_share: float | None = None
    drift: DriftState | None = None
    drift_limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, Unix time, and how far apart the points of a curve are, seconds."""

    since: int
    until: int
    step_s: int

    @classmethod
    def ending(cls, now: float, back: str) -> Period:
        """One of RANGES, the step that has begun included."""
        back_s, step_s = RANGES[back]
        until = (int(now) // step_s + 1) * step_s
        return cls(until - back_s, until, step_s)

    @classmethod
    def of_hours(cls, since: float, until: float, points: int = 120) -> Period:
        """Whole hours around a time of any length, with about so many points."""
        first, last = int(since // HOUR_S) * HOUR_S, -int(-until // HOUR_S) * HOUR_S
        last = max(last, first + HOUR_S)
        step_s = HOUR_S * max(1, round((last - first) / HOUR_S / points))
        return cls(first, last, step_s)


@dataclass(frozen=True, slots=True)
class Looked:
    """What somebody wants to see.

    Args:
        view: one of ViewName.
        range: one of RANGES, up to now.
        key, served: only requests of this API key, answered by this model.
        scale, reason, code: of decisions, likewise.
        predictor: of labels, likewise.
        known: about the service as it runs now.
        period: in place of the range.
    """

    view: ViewName
    range: str = "1h"
    key: str | None = None
    served: str | None = None
    scale: int | None = None
    reason: str | None = None
    code: str | None = None
    predictor: str | None = None
    known: Known = Known()
    period: Period | None = None


def read_look(view: ViewName, query: Mapping[str, str], known: Known) -> Looked:
    """What the query of a view's URL asks for.

    Raises:
        InvalidRequestError: a range that there is not, a filter that cannot be.
    """
    for name, value in query.items():
        if name not in FILTERS:
            raise InvalidRequestError(f"{quoted(name)} is no filter.", param=name[:LONGEST_FILTER])
        if len(value) > LONGEST_FILTER:
            raise InvalidRequestError(f"'{name}' is too long.", param=name)
    back = query.get("range", "1h")
    if back not in RANGES:
        raise InvalidRequestError(f"'range' is one of {', '.join(RANGES)}.", param="range")
    scale = query.get("scale")
    if scale is not None and not (
        scale.isascii() and scale.isdecimal() and len(scale) <= LONGEST_SCALE
    ):
        raise InvalidRequestError("'scale' is a number of visual tokens.", param="scale")
    return Looked(
        view,
        back,
        key=query.get("key"),
        served=query.get("served"),
        scale=None if scale is None else int(scale),
        reason=query.get("reason"),
        code=query.get("code"),
        predictor=query.get("predictor"),
        known=known,
    )
