"""Load on any server that speaks OpenAI's chat completions: speed, and how right the answers are.

`python -m benchmarks.serve [--url URL]` asks questions about drawn pictures (the worlds that
m3-tiny was not trained on), streamed, in a closed loop of each number of `--callers` and in an open
loop at each of `--rates`, and judges the answers by the metric that the predictor's evaluation
uses. Without a URL it starts the service of this checkout. `--reuse` is the share of requests about
a picture that was asked about before, `--skew` how unevenly those are spread (Zipf).

Every model and every server gets the same questions in the same order, so that answers can be
compared; an m3-router gets a cache salt for every load, so that nothing is known from the one
before. (Another server should be fresh, or be given another `--seed`.) Rows are added to the file
of `--into`, by default `results/serve.json`, and the table and plot are of all rows in it. Another
server for the same table, for instance vLLM with the same checkpoint at its fixed 576 tokens:

    vllm serve m3_backend/checkpoints/m3-tiny --port 8100
    python -m benchmarks.serve --url http://127.0.0.1:8100 --model m3-tiny --name vllm
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from matplotlib.figure import Figure

from benchmarks.open_loop import Reply, closed, opened
from benchmarks.results import RESULTS, machine
from benchmarks.running import service
from benchmarks.workload import Asked, Pictures, again_or_new, options_of, quantile
from deploy.client import KEY_VARIABLE, ready
from predictor.drawing import ACCENT, INK, MUTED, draw_grid, style
from predictor.metrics import METRICS, score

CALLERS = (1, 8, 32)
MAX_TOKENS = 16
WARM_UP = 16  # requests, before the first load
SETTINGS = {"log_level": "warning"}
METRIC = "exact"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if not options.callers and not options.rates:
        options.callers = list(CALLERS)
    model_names = options.model or ["m3-auto"]
    pictures = Pictures(options.requests, split="serve", seed=options.seed)
    with ExitStack() as running:
        url = (options.url or running.enter_context(service(SETTINGS)).url).rstrip("/")
        url = url.removesuffix("/v1")
        load = Load(url, pictures, options)
        load.warm_up(model_names[0])
        rows = [
            load.row(model, callers=callers, rate=rate)
            for model in model_names
            for callers, rate in [(n, None) for n in options.callers]
            + [(None, rate) for rate in options.rates]
        ]
    if not any(row["answered"] for row in rows):
        raise SystemExit(f"No request was answered by {url}: {rows[0]['statuses']}")
    path = Path(options.into)
    kept = [] if options.afresh or not path.exists() else json.loads(path.read_text())["rows"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": kept + rows}, indent=2) + "\n")
    print_table(kept + rows)
    plot(kept + rows).savefig(path.with_suffix(".png"), dpi=160)
    print(path)


def run() -> None:
    """The service itself: the chosen scales against the finest, new pictures."""
    main(["--model", "m3-auto", "--model", "m3-576", "--afresh"])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--url", help="of the server, with or without /v1; none starts our own")
    made.add_argument("--name", help="of the server in the table; the URL or 'm3-router' if not")
    made.add_argument("--model", action="append", help="repeatable; m3-auto, or m3-36 for a scale")
    made.add_argument(
        "--callers", type=listed(int), default=[], help="closed loops; 1,8,32 if no rates"
    )
    made.add_argument("--rates", type=listed(float), default=[], help="open loops, requests/s")
    made.add_argument("--requests", type=int, default=200, help="of every load")
    made.add_argument("--reuse", type=share, default=0.0, help="share about pictures seen before")
    made.add_argument("--skew", type=float, default=0.0, help="Zipf exponent of these")
    made.add_argument("--suffix", default="", help="put after every question")
    made.add_argument("--metric", choices=METRICS, default=METRIC)
    made.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    made.add_argument("--seed", type=int, default=0, help="of pictures, questions and arrivals")
    made.add_argument("--key-variable", default=KEY_VARIABLE, help="environment variable of a key")
    made.add_argument("--into", default=str(RESULTS / "serve.json"), help="file that rows go to")
    made.add_argument("--afresh", action="store_true", help="forget the rows that are in it")
    return made


def listed(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",") if part]


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("a share is between 0 and 1")
    return value


class Load:
    """One server and the questions for it."""

    def __init__(self, url: str, pictures: Pictures, options: argparse.Namespace) -> None:
        self._url, self._pictures, self._options = url, pictures, options
        key = os.environ.get(options.key_variable)
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._ours = asyncio.run(ready(url))
        self._run = random.SystemRandom().getrandbits(32)
        rng = random.Random(options.seed)
        order = again_or_new(options.requests, options.reuse, options.skew, rng)
        self._asked = [pictures.ask(number, rng) for number in order]
        self.name = options.name or ("m3-router" if options.url is None else url)

    def warm_up(self, model: str) -> None:
        """Some requests about pictures of its own. Raises SystemExit where nothing answers."""
        others = Pictures(WARM_UP, split="serve-warm-up", seed=self._options.seed)
        rng = random.Random(0)
        bodies = [self._body(others, others.ask(n, rng), model, "warm") for n in range(WARM_UP)]
        replies = asyncio.run(
            closed(
                self._url,
                bodies.__getitem__,
                callers=4,
                requests=WARM_UP,
                headers=self._headers,
            )
        )
        if all(reply.status == 0 for reply in replies):
            raise SystemExit(f"Nothing answers at {self._url}.")

    def row(self, model: str, *, callers: int | None, rate: float | None) -> dict[str, Any]:
        """What one load gave: `callers` in a closed loop, or arrivals at `rate`."""
        salt = f"{model}-{callers}-{rate}"

        def body(number: int) -> bytes:
            return self._body(self._pictures, self._asked[number], model, salt)

        options, requests = self._options, len(self._asked)
        if rate is None:
            assert callers is not None
            closing = closed(
                self._url,
                body,
                callers=callers,
                requests=requests,
                read=True,
                headers=self._headers,
            )
            replies = asyncio.run(closing)
        else:
            dues = [(rate, requests / rate)]
            opening = opened(
                self._url,
                lambda number: body(number % requests),
                dues,
                seed=options.seed,
                read=True,
                headers=self._headers,
            )
            replies = asyncio.run(opening)
        row = {
            "server": self.name,
            "model": model,
            "callers": callers,
            "rate": rate,
            "reuse": options.reuse,
            "skew": options.skew,
            "seed": options.seed,
            **figures(replies, self._asked, options.metric),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        print_row(row)
        return row

    def _body(self, pictures: Pictures, asked: Asked, model: str, salt: str) -> bytes:
        members: dict[str, Any] = {
            "model": model,
            "max_tokens": self._options.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ours:
            members["m3"] = {"cache_salt": f"{self._run}-{salt}"}
        return pictures.body(asked, options_of(members), self._options.suffix)


def figures(replies: Sequence[Reply], asked: Sequence[Asked], metric: str) -> dict[str, Any]:
    """Speed and accuracy. Requests that were not answered are not slow: they are counted."""
    good = [reply for reply in replies if reply.answered and reply.said is not None]
    ended = max((reply.due + reply.seconds for reply in replies), default=0.0)
    firsts = [reply.said.first_s for reply in good if reply.said]
    worth: dict[str, list[float]] = {}
    for reply in good:
        one = asked[reply.number % len(asked)]
        assert reply.said is not None
        worth.setdefault(one.family, []).append(score(metric, reply.said.text, [one.answer]))  # type: ignore[arg-type]
    of_all = [value for values in worth.values() for value in values]
    prompts = [reply.said.prompt_tokens for reply in good if reply.said]
    told = [tokens for tokens in prompts if tokens is not None]
    ours = [reply for reply in good if reply.cache]
    return {
        "requests": len(replies),
        "answered": len(good),
        "statuses": dict(sorted(Counter(str(reply.status) for reply in replies).items())),
        "requests_per_s": len(good) / ended if ended else 0.0,
        "ttft_p50_s": quantile(firsts, 0.5),
        "ttft_p95_s": quantile(firsts, 0.95),
        "total_p50_s": quantile([reply.seconds for reply in good], 0.5),
        "total_p95_s": quantile([reply.seconds for reply in good], 0.95),
        "accuracy": statistics.fmean(of_all) if of_all else None,
        "accuracy_error": statistics.stdev(of_all) / len(of_all) ** 0.5 if of_all[1:] else None,
        "metric": metric,
        "by_family": {family: statistics.fmean(v) for family, v in sorted(worth.items())},
        "mean_prompt_tokens": statistics.fmean(told) if told else None,
        "mean_scale": statistics.fmean(r.tokens for r in ours) if ours else None,
        "cache": dict(Counter(reply.cache for reply in ours)),
    }


HEADER = (
    f"{'server':>14} {'model':>8} {'load':>9} {'reuse':>5} {'ok':>9} {'req/s':>6} "
    f"{'TTFT p50':>8} {'p95':>6} {'total p50':>9} {'p95':>6} {'prompt':>6} {'accuracy':>12}"
)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\nserve: times in seconds, prompt in tokens\n{HEADER}")
    for row in rows:
        print_row(row)


def print_row(row: dict[str, Any]) -> None:
    load = f"{row['callers']} callers" if row["rate"] is None else f"{row['rate']:g}/s"
    told = row["mean_prompt_tokens"]
    right = "none" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    error = row["accuracy_error"]
    print(
        f"{row['server'][-14:]:>14} {row['model'][-8:]:>8} {load:>9} {row['reuse']:5g} "
        f"{row['answered']:4}/{row['requests']:<4} {row['requests_per_s']:6.1f} "
        f"{row['ttft_p50_s']:8.3f} {row['ttft_p95_s']:6.2f} "
        f"{row['total_p50_s']:9.3f} {row['total_p95_s']:6.2f} "
        f"{'' if told is None else f'{told:.0f}':>6} "
        f"{right:>6} {'' if error is None else f'±{error:.1%}':>5}",
        flush=True,
    )


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy against requests per second: one line a server, model and reuse."""
    lines: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["accuracy"] is not None:
            lines.setdefault((row["server"], row["model"], row["reuse"]), []).append(row)
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for at, ((server, model, reuse), of_line) in enumerate(lines.items()):
            axes.plot(
                [row["requests_per_s"] for row in of_line],
                [row["accuracy"] for row in of_line],
                marker="os^vD"[at % 5],
                ls="",
                color=(ACCENT, INK, MUTED)[at % 3],
                label=f"{server} {model}" + (f", {reuse:.0%} seen before" if reuse else ""),
            )
        axes.set_xlabel("requests/s")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False)
        draw_grid(axes)
    return figure


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        raise SystemExit(str(error)) from None
