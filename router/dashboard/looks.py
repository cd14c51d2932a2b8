"""What somebody wants to see of the records: a view, how far back, and which requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from m3_backend.errors import InvalidRequestError, quoted

ViewName = Literal["cost", "decisions", "frontier"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
LONGEST_FILTER = 200
LONGEST_SCALE = 7  # digits

# Seconds that a view looks back, and between its points.
RANGES = {"15m": (900, 10), "1h": (3600, 60), "6h": (21_600, 300), "24h": (86_400, 900)}
RANGES |= {"7d": (604_800, 7200), "30d": (2_592_000, 21_600)}


@dataclass(frozen=True, slots=True)
class Known:
    """What only the running service knows.

    Args:
        prefill_token_ms: replica time of one more image token, as measured at the model's start.
        max_regret: its own bound.
        prices: certified ones of the predictor in force, by their bound, strict to loose.
    """

    prefill_token_ms: float = 0.0
    max_regret: float = 0.0
    prices: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Looked:
    """What somebody wants to see.

    Args:
        view: one of ViewName.
        range: one of RANGES.
        key, served: only requests of this API key, answered by this model.
        scale, reason, code: of decisions, likewise.
        known: about the service as it runs now.
    """

    view: ViewName
    range: str = "1h"
    key: str | None = None
    served: str | None = None
    scale: int | None = None
    reason: str | None = None
    code: str | None = None
    known: Known = Known()


def read_look(view: ViewName, query: Mapping[str, str], known: Known) -> Looked:
    """What the query of a view's URL asks for.

    Raises:
        InvalidRequestError: a range that there is not, a filter that cannot be.
    """
    for name, value in query.items():
        if name not in ("range", "key", "served", "scale", "reason", "code"):
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
        known=known,
    )
