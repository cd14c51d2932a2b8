"""What the views of the page show, from the sums over all records. Every figure says what it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.selection import select_many
from router.dashboard.looks import Known, Looked, Period, ViewName
from router.dashboard.quality import Foreseen, calibration, needs
from router.dashboard.rollups import BINS_PER_OCTAVE, CACHES, ROUTER_TIMES, RollUps, level_for
from router.drift import FEWEST_IMAGES

MS_PER_HOUR = 3_600_000.0
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
DECISIONS = 100  # shown at once
HITS = tuple(level for level in CACHES if level != "miss")
PREDICTED = "predicted"  # the reason of a choice that nothing but the predictor settled
SINCE = "t >= to_timestamp($since)"
ESTIMATE = ("regret", "low", "high", "bound")  # of predictor.regret.Estimate


@dataclass(frozen=True, slots=True)
class Price:
    """What a replica costs, for figures in money; None where nobody has said it."""

    per_replica_hour: float | None = None
    currency: str = "USD"

    def per_thousand(self, replica_ms: float | None) -> float | None:
        """Of 1,000 requests that take this replica time each."""
        if self.per_replica_hour is None or replica_ms is None:
            return None
        return replica_ms / MS_PER_HOUR * self.per_replica_hour * 1000


class Views:
    """Answers what the page asks.

    Args:
        clock: Unix time, seconds.
    """

    def __init__(self, rollups: RollUps, price: Price, clock: Callable[[], float]) -> None:
        self._rollups, self._price, self._clock = rollups, price, clock

    def show(self, looked: Looked) -> dict[str, Any]:
        """One view, as JSON can hold it."""
        return _Look(self._rollups, self._price, self._clock(), looked).show()


class _Look:
    """One look: everything in it is about the same time and the same requests."""

    def __init__(self, rollups: RollUps, price: Price, now: float, looked: Looked) -> None:
        self._rollups, self._price, self._looked = rollups, price, looked
        period = looked.period or Period.ending(now, looked.range)
        self.since, self.until, self.step_s = period.since, period.until, period.step_s
        self._level = level_for(self.step_s).name
        self._where = "t >= to_timestamp($since) AND t < to_timestamp($until)"
        self._given: dict[str, Any] = {"since": self.since, "until": self.until}
        for name in ("key", "served"):
            if (value := getattr(looked, name)) is not None:
                self._where += f" AND {name} = ${name}"
                self._given[name] = value

    def show(self) -> dict[str, Any]:
        head = {
            "since": self.since,
            "until": self.until,
            "step_s": self.step_s,
            "records": self._rollups.records,
            "keys": self._known("key"),
            "models": self._known("served"),
        }
        return head | VIEWS[self._looked.view](self)

    def cost(self) -> dict[str, Any]:
        """Cost and latency."""
        totals = self._totals()
        return {
            "totals": totals,
            "codes": self._counts("code"),
            "changes": self._changes(),
            "over_time": self._over_time(),
            "policies": self._policies(totals),
            "currency": self._price.currency,
            "price_per_replica_hour": self._price.per_replica_hour,
            **self._times(),
        }

    def quality(self) -> dict[str, Any]:
        """What routing costs in answers, by labels of the uniform stratum, whoever asked."""
        known = self._looked.known
        [counted] = self._of_labels(
            "count(*) AS labels, count(DISTINCT image) AS pictures,"
            f" count(*) FILTER (reason = '{PREDICTED}') AS predicted",
            "labels",
            SINCE,
        )
        foreseen = Foreseen.of(
            self._rollups.table(
                *self._label_query(
                    "scales, p_success, agrees, list_position(scales, scale) AS place, image",
                    "labels",
                    f"{SINCE} AND reason = '{PREDICTED}' AND p_success IS NOT NULL",
                    "QUALIFY mode(scales) OVER () = scales",  # of the model that has most
                )
            )
        )
        return {
            **counted,
            "predictor": known.predictor,
            "target": known.target,
            "max_regret": known.max_regret,
            "uniform_share": known.uniform_share,
            "predictors": self._regrets(),
            "changes": self._changes(),
            "over_time": self._regret_over_time(),
            "calibration": calibration(foreseen),
            "allocation": needs(foreseen),
            "drift": _drift(known),
        }

    def decisions(self) -> dict[str, Any]:
        """The newest requests, one by one."""
        where, given = self._where, dict(self._given)
        for name, column in (("scale", "scale"), ("code", "code")):
            if (value := getattr(self._looked, name)) is not None:
                where += f" AND {column} = ${name}"
                given[name] = value
        if self._looked.reason is not None:
            where += " AND list_contains(list_transform(images, lambda i: i.reason), $reason)"
            given["reason"] = self._looked.reason
        rows = self._rollups.query(
            f"SELECT *, epoch(t) AS arrived FROM recent WHERE {where} "
            f"ORDER BY t DESC LIMIT {DECISIONS}",
            given,
        )
        for row in rows:
            del row["t"]
        reasons = self._rollups.query(
            "SELECT DISTINCT unnest(images).reason AS reason FROM recent ORDER BY reason"
        )
        codes = self._rollups.query("SELECT DISTINCT code FROM recent ORDER BY code")
        return {
            "requests": rows,
            "reasons": [row["reason"] for row in reasons],
            "codes": [row["code"] for row in codes],
        }

    def frontier(self) -> dict[str, Any]:
        """Success against tokens, as predicted for the newest pictures: fixed scales, what was
        chosen, and what the predictor in force would choose at each certified bound.
        """
        rows = self._rollups.query(
            "SELECT images, places FROM (SELECT unnest(images) AS images,"
            " unnest(list_transform(images, lambda i: list_position(i.tokens_per_scale, i.tokens)))"
            f" AS places FROM recent WHERE {self._where} AND code = 'ok')"
            " WHERE images.p_success IS NOT NULL",
            self._given,
        )
        known = self._looked.known
        return _frontier(rows, known) | {"max_regret": known.max_regret}

    def _sql(self, select: str, table: str, rest: str = "") -> list[dict[str, Any]]:
        sql = f"SELECT {select} FROM {table}_{self._level} WHERE {self._where} {rest}"
        return self._rollups.query(sql, self._given)

    def _known(self, column: str) -> list[str]:
        rows = self._rollups.query(
            f"SELECT DISTINCT {column} AS name FROM sums_hours WHERE name IS NOT NULL ORDER BY name"
        )
        return [row["name"] for row in rows]

    def _of_labels(self, *asked: str) -> list[dict[str, Any]]:
        return self._rollups.query(*self._label_query(*asked))

    def _label_query(
        self, select: str, table: str, where: str, rest: str = ""
    ) -> tuple[str, dict[str, Any]]:
        """A query about labels, which hold no API key, or about what has their columns."""
        given = {name: self._given[name] for name in ("since", "until")}
        for name in ("served", "predictor"):
            if (value := getattr(self._looked, name)) is not None:
                where += f" AND {name} = ${name}"
                given[name] = value
        sql = f"SELECT {select} FROM {table} WHERE t < to_timestamp($until) AND {where} {rest}"
        return sql, given

    def _regrets(self) -> list[dict[str, Any]]:
        """Every predictor that decided in this time, the latest first: when and how often, and its
        regret as far as it was known at the end of this time.
        """
        known = self._of_labels(
            f"predictor, arg_max(struct_pack({', '.join(ESTIMATE)}, labels), labels) AS known",
            "estimates",
            "$since IS NOT NULL",  # whenever: an estimate is of all its labels
            "GROUP BY predictor",
        )
        estimates = {row["predictor"]: row["known"] for row in known}
        decided = self._of_labels(
            "predictor, epoch(min(t))::BIGINT AS first, epoch(max(t))::BIGINT AS last,"
            " sum(requests)::BIGINT AS answers",
            f"sums_{self._level}",
            f"{SINCE} AND code = 'ok'",
            "GROUP BY predictor ORDER BY last DESC, first DESC",
        )
        return [row | {"regret": estimates.get(row["predictor"])} for row in decided]

    def _regret_over_time(self) -> dict[str, Any]:
        """Estimates as they stood after each step that brought labels, by predictor."""
        at = list(range(self.since, self.until, self.step_s))
        rows = self._of_labels(
            f"{self._bucket()} AS second, coalesce(predictor, 'none') AS version,"
            f" arg_max(struct_pack({', '.join(ESTIMATE)}), labels) AS known",
            "estimates",
            SINCE,
            "GROUP BY ALL",
        )
        lines: dict[str, dict[str, list[float | None]]] = {}
        for row in rows:
            empty: dict[str, list[float | None]] = {name: [None] * len(at) for name in ESTIMATE}
            line = lines.setdefault(row["version"], empty)
            for name in ESTIMATE:
                line[name][(row["second"] - self.since) // self.step_s] = row["known"][name]
        return {"at": at, "predictors": lines}

    def _changes(self) -> list[dict[str, Any]]:
        """When another predictor began to decide most requests."""
        rows = self._sql(
            f"{self._bucket()} AS second, coalesce(predictor, 'none') AS version,"
            " sum(requests)::BIGINT AS requests",
            "sums",
            "AND code = 'ok' GROUP BY ALL ORDER BY second, requests",
        )
        most = {row["second"]: row["version"] for row in rows}  # the last of each second
        pairs = itertools.pairwise(most.items())
        return [{"at": at, "predictor": now} for (_, was), (at, now) in pairs if now != was]

    def _totals(self) -> dict[str, Any]:
        # Answers whose replica has told what they took; a request that was refused took nothing.
        [row] = self._sql(
            "coalesce(sum(requests), 0)::BIGINT AS requests,"
            "coalesce(sum(requests) FILTER (code = 'ok'), 0)::BIGINT AS answered,"
            "coalesce(sum(requests) FILTER (code = 'overloaded'), 0)::BIGINT AS refused,"
            "coalesce(sum(image_tokens) FILTER (code = 'ok'), 0)::BIGINT AS image_tokens,"
            "coalesce(sum(finest_tokens) FILTER (code = 'ok'), 0)::BIGINT AS finest_tokens,"
            "coalesce(sum(prompt_tokens) FILTER (code = 'ok'), 0)::BIGINT AS prompt_tokens,"
            "coalesce(sum(completion_tokens) FILTER (code = 'ok'), 0)::BIGINT AS completion_tokens,"
            "coalesce(sum(encode_ms + prefill_ms + decode_ms) FILTER (code = 'ok'), 0)::DOUBLE"
            " AS replica_ms,"
            "coalesce(sum(encode_ms) FILTER (code = 'ok'), 0)::DOUBLE AS encode_ms,"
            "coalesce(sum(prefill_ms) FILTER (code = 'ok'), 0)::DOUBLE AS prefill_ms,"
            "coalesce(sum(decode_ms) FILTER (code = 'ok'), 0)::DOUBLE AS decode_ms,"
            + "".join(f"coalesce(sum({level}), 0)::BIGINT AS {level}," for level in CACHES)
            + "coalesce(sum(loosened), 0)::BIGINT AS loosened,"
            "coalesce(sum(retries), 0)::BIGINT AS retries, max(pressure)::DOUBLE AS pressure",
            "sums",
        )
        return row

    def _counts(self, column: str) -> list[dict[str, Any]]:
        return self._sql(
            f"{column} AS name, sum(requests)::BIGINT AS requests",
            "sums",
            "GROUP BY name ORDER BY requests DESC",
        )

    def _bucket(self) -> str:
        begin = f"to_timestamp({self.since})"
        return f"epoch(time_bucket(INTERVAL {self.step_s} SECOND, t, {begin}))::BIGINT"

    def _over_time(self) -> dict[str, Any]:
        at = list(range(self.since, self.until, self.step_s))
        places = {second: index for index, second in enumerate(at)}
        rows = self._sql(
            f"{self._bucket()} AS second, scale, code = 'ok' AS ok, code = 'overloaded' AS refused,"
            "sum(requests)::BIGINT AS requests, sum(image_tokens)::BIGINT AS image_tokens,"
            "sum(finest_tokens)::BIGINT AS finest_tokens, max(pressure)::DOUBLE AS pressure,"
            f"sum({' + '.join(HITS)})::BIGINT AS hits,"
            f"sum({' + '.join(CACHES)})::BIGINT AS images",
            "sums",
            "GROUP BY ALL",
        )

        def line(value: str, keep: Callable[[dict[str, Any]], bool]) -> list[float]:
            points = [0.0] * len(at)
            for row in rows:
                if keep(row) and row["second"] in places:
                    points[places[row["second"]]] += row[value] or 0
            return points

        scales = sorted({row["scale"] for row in rows if row["scale"] is not None})
        pressure: list[float | None] = [None] * len(at)
        for row in rows:
            if row["pressure"] is not None and row["second"] in places:
                place = places[row["second"]]
                pressure[place] = max(pressure[place] or 0.0, row["pressure"])
        tokens, finest = (line(c, lambda r: r["ok"]) for c in ("image_tokens", "finest_tokens"))
        answered = line("requests", lambda r: r["ok"])
        hits, images = (line(c, lambda r: True) for c in ("hits", "images"))
        return {
            "at": at,
            "scales": {
                str(scale): line("requests", lambda r, s=scale: r["ok"] and r["scale"] == s)  # type: ignore[misc]
                for scale in scales
            },
            "answered": answered,
            "refused": line("requests", lambda r: r["refused"]),
            "failed": line("requests", lambda r: not r["ok"] and not r["refused"]),
            "tokens": _ratio(tokens, answered),
            "finest": _ratio(finest, answered),
            "hit_share": _ratio(hits, images),
            "pressure": pressure,
            "ttft": self._quantiles_over_time("ttft", at),
        }

    def _quantiles_over_time(self, kind: str, at: Sequence[int]) -> dict[str, list[float | None]]:
        rows = self._sql(
            f"{self._bucket()} AS second, bin, sum(n)::BIGINT AS n",
            "times",
            f"AND kind = '{kind}' GROUP BY ALL",
        )
        by_second: dict[int, dict[int, int]] = {}
        for row in rows:
            by_second.setdefault(row["second"], {})[row["bin"]] = row["n"]
        return {
            name: [quantile(by_second.get(second, {}), q) for second in at]
            for name, q in QUANTILES.items()
        }

    def _policies(self, totals: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What was done beside what any fixed scale would have taken of the same requests."""
        answered = totals["answered"]
        if not answered:
            return []
        ladder = self._sql(
            "place, sum(tokens)::BIGINT AS tokens, sum(p)::DOUBLE AS p,"
            "sum(predicted)::BIGINT AS predicted, sum(images)::BIGINT AS images,"
            "sum(p_chosen)::DOUBLE AS p_chosen",
            "ladders",
            "GROUP BY place ORDER BY place",
        )
        predicted = sum(row["predicted"] for row in ladder[-1:])
        chosen_p = sum(row["p_chosen"] or 0.0 for row in ladder) / predicted if predicted else None

        def policy(name: str, place: int | None, tokens: int, p: float | None) -> dict[str, Any]:
            more = tokens - totals["image_tokens"]
            token_ms = self._looked.known.prefill_token_ms
            spent = None if more and token_ms is None else more * (token_ms or 0.0)
            each = None if spent is None else (totals["replica_ms"] + spent) / answered
            return {
                "policy": name,
                "place": place,
                "image_tokens": tokens,
                "tokens_per_request": tokens / answered,
                "replica_ms": each,
                "money": self._price.per_thousand(each),
                "p_success": p,
            }

        rows = [policy("router", None, totals["image_tokens"], chosen_p)]
        for row in ladder:
            p = row["p"] / row["predicted"] if row["predicted"] else None
            fixed = policy("fixed", row["place"], row["tokens"], p)
            rows.append(fixed | {"tokens_per_picture": row["tokens"] / row["images"]})
        as_good = [
            r for r in rows[1:] if chosen_p is not None and (r["p_success"] or 0) >= chosen_p
        ]
        for row in rows[1:]:
            row["finest"] = row is rows[-1]
            row["as_good"] = bool(as_good) and row is as_good[0]
        return rows

    def _times(self) -> dict[str, Any]:
        """Of answers, to the first token and to the end, by scale; and the router's own work, part
        by part, where `routing` is all of it.
        """
        rows = self._sql(
            "kind, scale, bin, sum(n)::BIGINT AS n, sum(ms)::DOUBLE AS ms",
            "times",
            "GROUP BY kind, scale, bin",
        )
        bins: dict[tuple[str, int | None], dict[int, int]] = {}
        spent: dict[str, float] = {}
        for row in rows:
            bins.setdefault((row["kind"], row["scale"]), {})[row["bin"]] = row["n"]
            spent[row["kind"]] = spent.get(row["kind"], 0.0) + row["ms"]
        whole: Counter[int] = Counter()
        for (kind, _), counted in bins.items():
            if kind == "ttft":
                whole.update(counted)
        scales = sorted(s for kind, s in bins if kind == "total" and s is not None)
        return {
            "ttft": _quantiles(whole),
            "latency": [
                {
                    "scale": scale,
                    "requests": sum(bins["total", scale].values()),
                    "ttft": _quantiles(bins.get(("ttft", scale), {})),
                    "total": _quantiles(bins["total", scale]),
                }
                for scale in scales
            ],
            "stages": [
                {
                    "stage": kind,
                    "mean": spent[kind] / sum(bins[kind, None].values()),
                    **_quantiles(bins[kind, None]),
                }
                for kind in ROUTER_TIMES
                if (kind, None) in bins
            ],
        }


VIEWS: dict[ViewName, Callable[[_Look], dict[str, Any]]] = {
    "cost": _Look.cost,
    "quality": _Look.quality,
    "decisions": _Look.decisions,
    "frontier": _Look.frontier,
}


def _drift(known: Known) -> dict[str, Any] | None:
    """How far the newest requests have moved from what the predictor in force was certified on."""
    if known.drift is None:
        return None
    return {
        "images": known.drift.images,
        "fewest_images": FEWEST_IMAGES,
        "limit": known.drift_limit,
        "warning": known.drift.warning,
        "shifts": [
            {"kind": kind, "name": shift.name, "psi": shift.psi}
            for kind, shift in known.drift.shifts.items()
        ],
    }


def _frontier(rows: Sequence[Mapping[str, Any]], known: Known) -> dict[str, Any]:
    """Of pictures with their probabilities and tokens per scale, and the place that was chosen."""
    lengths = Counter(len(row["images"]["p_success"]) for row in rows)
    if not rows:
        return {"pictures": 0, "chosen": None, "fixed": [], "bounds": []}
    length = lengths.most_common(1)[0][0]  # of the model that has answered most
    kept = [row for row in rows if len(row["images"]["p_success"]) == length]
    p = np.array([row["images"]["p_success"] for row in kept], dtype=np.float64)
    tokens = np.array([row["images"]["tokens_per_scale"] for row in kept], dtype=np.float64)
    places = np.array([row["places"] for row in kept]) - 1

    def point(at: NDArray[Any]) -> dict[str, Any]:
        which = np.arange(len(p))
        lost = np.where(at < length - 1, p[:, -1] * (1 - p[which, at]), 0.0)
        return {
            "tokens": float(tokens[which, at].mean()),
            "p": float(p[which, at].mean()),
            "regret": float(lost.mean()),
            "shares": (np.bincount(at, minlength=length) / len(at)).tolist(),
        }

    prices = [price for _, price in known.prices]
    chosen = select_many(p, tokens / tokens[:, -1:], prices) if prices else np.empty((len(p), 0))
    return {
        "pictures": len(p),
        "chosen": point(places),
        "fixed": [point(np.full(len(p), place)) for place in range(length)],
        "bounds": [
            {"bound": bound, "changed": float((chosen[:, at] != places).mean())}
            | point(chosen[:, at])
            for at, (bound, _) in enumerate(known.prices)
        ],
    }


def quantile(bins: Mapping[int, int], q: float) -> float | None:
    """The q-quantile in milliseconds of durations counted in bins, evenly spread inside each."""
    if not bins:
        return None
    numbers: NDArray[np.int64] = np.array(sorted(bins))
    counts = np.array([bins[number] for number in numbers.tolist()], dtype=float)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    rank = q * below[-1]
    at = min(int(np.searchsorted(below[1:], rank)), len(numbers) - 1)
    inside = (rank - below[at]) / counts[at]
    return float(2.0 ** ((numbers[at] + inside) / BINS_PER_OCTAVE))


def _quantiles(bins: Mapping[int, int]) -> dict[str, float | None]:
    return {name: quantile(bins, q) for name, q in QUANTILES.items()}


def _ratio(above: Sequence[float], below: Sequence[float]) -> list[float | None]:
    return [a / b if b else None for a, b in zip(above, below, strict=True)]
