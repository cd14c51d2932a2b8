"""Replicas are killed and Redis is restarted while requests arrive; none may be lost or wrong.

The whole service in processes of its own, over HTTP: two replicas of m3-tiny behind one ingress, a
Redis for features and limits, and callers that ask one question after the other. Every 20 seconds a
replica dies by `kill -9`, every 30 seconds Redis does and comes back a second later. Every answer
is compared with the one that the engine gave beforehand, alone and at the same scale, in the same
precision (32 bits, in which the order of sums in a batch practically never changes a token).

Whole answers must all arrive, unless their deadline has passed. Streams that had sent text may end
with `replica_lost`, and what they had sent must be the beginning of the right answer. A replica
takes ten to fifteen seconds to load on two cores, more under load, so that now and then nobody is
there; the deadline allows for that.

Writes `results/chaos.json` and `results/chaos.png`, and ends with an error if anything was lost or
wrong. Five minutes; `CHAOS_SECONDS`, `CHAOS_DEADLINE_S` and `CHAOS_CALLERS` change that.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.results import RESULTS, ROOT, write
from deploy.engines import EngineBackend
from deploy.redis_server import find_server
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.messages import Delta
from m3_backend.training.worlds import draw
from predictor.drawing import ACCENT, INK, MUTED, draw_grid, style
from router.auth import digest_of_key, new_key
from router.config import RouterConfig
from router.service import RoutingService
from router.trace import Trace

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
DEADLINE_S = float(os.environ.get("CHAOS_DEADLINE_S", "90"))
CALLERS = int(os.environ.get("CHAOS_CALLERS", "8"))
KILL_EVERY_S, RESTART_EVERY_S, REDIS_AWAY_S = 20.0, 30.0, 1.0
REPLICAS, DTYPE = 2, "float32"
PICTURES, MAX_TOKENS = 32, 16
SCALES = (1, 9, 36, 144, 576)
STREAMED = 0.2  # share of requests
READY_WITHIN_S = 300.0
LATE_S = 1.0  # an error counts as late from so long before the deadline
CHAT = "/v1/chat/completions"
REPLICA = b"ray::ServeReplica:m3-router:M3Replica"

Expected = dict[tuple[int, int], str]  # by picture and scale


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Args:
        begun: seconds since the run began.
        status: 0 if no response came.
        code: of the error, if there was one; of a stream also after its 200.
        right: the text is the expected one, or of a broken stream its beginning.
    """

    begun: float
    seconds: float
    picture: int
    streamed: bool
    status: int
    code: str | None = None
    scale: int | None = None
    cache: str | None = None
    degraded: bool = False
    text: str = ""
    right: bool = False

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.code is None

    @property
    def refused(self) -> bool:
        """It was never accepted."""
        return self.status == 429

    @property
    def lost(self) -> bool:
        """An answer that did not come although its deadline had not passed. A stream is lost only
        if nothing of it had come.
        """
        early = self.seconds < DEADLINE_S - LATE_S
        begun = self.streamed and self.status == 200
        return not (begun or self.answered or self.refused) and early

    @property
    def wrong(self) -> bool:
        return self.status == 200 and not self.right


@dataclass(slots=True)
class Run:
    """Replies and faults, in seconds since it began."""

    began: float = field(default_factory=time.monotonic)
    replies: list[Reply] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.began


def run() -> None:
    drawn = [draw("chaos", index, seed=11) for index in range(PICTURES)]
    questions = [(_png(picture.image), picture.questions[0].text) for picture in drawn]
    expected = asyncio.run(answers_alone(questions))
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        cache = running.enter_context(Cache(folder).running())
        key = new_key()
        server, url = running.enter_context(service(folder, cache, key))
        outcome = asyncio.run(chaos(url, key, server, cache, questions, expected))
        metrics = _metrics(url, key)
    figures = summary(outcome, metrics)
    with style():
        draw_timeline(outcome).savefig(RESULTS / "chaos.png", dpi=150)
    print(f"\nchaos: {json.dumps({k: v for k, v in figures.items() if k != 'examples'}, indent=1)}")
    print(write("chaos", figures))
    if figures["lost"] or figures["wrong"]:
        raise SystemExit(f"lost or wrong answers: {figures['examples']}")


async def answers_alone(questions: Sequence[tuple[str, str]]) -> Expected:
    """Every answer at every scale, one request at a time, by an engine in this process."""
    settings = EngineSettings(threads=1)
    engine = TorchEngine.open("m3-tiny", dtype=DTYPE, device="cpu", settings=settings)
    alone = RoutingService(EngineBackend(engine), None, RouterConfig())
    expected: Expected = {}
    try:
        for index, question in enumerate(questions):
            for scale in SCALES:
                asked = json.dumps(body(question, f"m3-{scale}", stream=False)).encode()
                answer = await alone.handle(asked, Trace("alone"))
                texts = [event.text async for event in answer if isinstance(event, Delta)]
                expected[index, scale] = "".join(texts)
    finally:
        alone.close()
        engine.close()
    return expected


def body(question: tuple[str, str], model: str, *, stream: bool) -> dict[str, Any]:
    url, text = question
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "max_tokens": MAX_TOKENS, "stream": stream}


async def chaos(
    url: str,
    key: str,
    server: int,
    cache: Cache,
    questions: Sequence[tuple[str, str]],
    expected: Expected,
) -> Run:
    outcome, random_ = Run(), random.Random(0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key}"},
        timeout=DEADLINE_S + 30,
        limits=limits,
    ) as client:

        async def caller() -> None:
            while outcome.now() < SECONDS:
                picture = random_.randrange(PICTURES)
                model = random_.choice(("m3-auto", *(f"m3-{scale}" for scale in SCALES)))
                stream = random_.random() < STREAMED
                asked = body(questions[picture], model, stream=stream)
                outcome.replies.append(await ask(client, asked, picture, expected, outcome))

        faults = [
            asyncio.create_task(kill_replicas(server, outcome, random_)),
            asyncio.create_task(restart_redis(cache, outcome)),
        ]
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        for fault in faults:
            fault.cancel()
        for ended in await asyncio.gather(*faults, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
    return outcome


async def ask(
    client: httpx.AsyncClient, asked: dict[str, Any], picture: int, expected: Expected, run: Run
) -> Reply:
    begun = run.now()
    text, code, headers, status = "", None, httpx.Headers(), 0
    try:
        async with client.stream("POST", CHAT, json=asked) as response:
            status, headers = response.status_code, response.headers
            if status == 200 and asked["stream"]:
                text, code = await _streamed(response)
            else:
                text, code = _whole(await response.aread())
    except httpx.HTTPError as error:
        status, code = 0, type(error).__name__
    seconds = run.now() - begun
    if status != 200 or "x-m3-scale" not in headers:
        return Reply(begun, seconds, picture, asked["stream"], status, code or "none")
    scale = int(headers["x-m3-scale"])
    right = expected[picture, scale]
    return Reply(
        begun,
        seconds,
        picture,
        asked["stream"],
        status,
        code,
        scale,
        headers["x-m3-cache"],
        "x-m3-degraded" in headers,
        text,
        text == right if code is None else right.startswith(text),
    )


def _whole(content: bytes) -> tuple[str, str | None]:
    """Text, and the error's code."""
    try:
        answer = json.loads(content)
    except ValueError:
        return "", "not_json"
    if "error" in answer:
        return "", answer["error"]["code"]
    return answer["choices"][0]["message"]["content"], None


async def _streamed(response: httpx.Response) -> tuple[str, str | None]:
    text = ""
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return text, None
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            return text, event["error"]["code"]
        text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text, "cut"


async def kill_replicas(server: int, outcome: Run, random_: random.Random) -> None:
    for number in range(1, 10**6):
        await asyncio.sleep(number * KILL_EVERY_S - outcome.now())
        if found := await asyncio.to_thread(replicas, server):
            os.kill(random_.choice(found), signal.SIGKILL)
            outcome.kills.append(outcome.now())


async def restart_redis(cache: Cache, outcome: Run) -> None:
    for number in range(1, 10**6):
        await asyncio.sleep(number * RESTART_EVERY_S - outcome.now())
        outcome.restarts.append(outcome.now())
        cache.kill()
        await asyncio.sleep(REDIS_AWAY_S)
        await asyncio.to_thread(cache.start)


def replicas(server: int) -> list[int]:
    """Process ids of the model replicas below the service's own process."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int(
                (process / "stat").read_text().rpartition(") ")[2].split()[1]
            )
            if (process / "cmdline").read_bytes().startswith(REPLICA):
                found.append(int(process.name))
        except OSError:  # it ended meanwhile
            continue

    def is_ours(process: int) -> bool:
        while process > 1 and process != server:
            process = parents.get(process, 0)
        return process == server

    return sorted(process for process in found if is_ours(process))


class Cache:
    """A Redis of this run's own that comes back at the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    @contextmanager
    def running(self) -> Iterator[Cache]:
        self.start()
        try:
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        binary = find_server()
        assert binary is not None, "a redis-server is needed"
        options = ("--bind", "127.0.0.1", "--port", str(self._port), "--save", "")
        memory = ("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lfu")
        self._process = subprocess.Popen(
            [binary, *options, *memory, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 30
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def service(folder: Path, cache: Cache, key: str) -> Iterator[tuple[int, str]]:
    """`m3-router serve` of this checkout; gives its process id and URL.

    Its one key has limits nobody reaches, so that every request asks Redis; and the replicas have
    memory for few features, so that most come from there.
    """
    keys = folder / "keys.yaml"
    entry = {
        "name": "chaos",
        "sha256": digest_of_key(key).hex(),
        "operator": True,
        "requests_per_minute": 10**6,
        "tokens_per_minute": 10**9,
    }
    keys.write_text(yaml.safe_dump([entry]))
    port = _free_port()
    settings = {
        "model.dtype": DTYPE,
        "cache.redis": cache.url,
        "cache.memory": "1MiB",
        "router.access.keys": str(keys),
        "router.request_timeout_s": DEADLINE_S,
        "serve.replica.replicas": REPLICAS,
        "log_level": "warning",
    }
    changes = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    server = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "serve", "--port", str(port), *changes],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not _is_ready(url) or len(replicas(server.pid)) < REPLICAS:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the service did not start")
            time.sleep(0.5)
        yield server.pid, url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=3).status_code == 200
    except httpx.HTTPError:
        return False


def _metrics(url: str, key: str) -> dict[str, float]:
    """Sums of the service's own counters of faults."""
    headers = {"authorization": f"Bearer {key}"}
    exposition = httpx.get(f"{url}/metrics", headers=headers, timeout=30).text
    names = ("m3_retries_total", "m3_degraded_requests_total")
    return {
        name: sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", exposition, re.M))
        for name in names
    }


def summary(outcome: Run, metrics: dict[str, float]) -> dict[str, Any]:
    whole = [reply for reply in outcome.replies if not reply.streamed]
    streams = [reply for reply in outcome.replies if reply.streamed]
    answered = [reply for reply in outcome.replies if reply.answered]
    seconds = sorted(reply.seconds for reply in answered)
    failed = [reply for reply in outcome.replies if reply.lost or reply.wrong]
    return {
        "seconds": SECONDS,
        "deadline_s": DEADLINE_S,
        "callers": CALLERS,
        "replicas": REPLICAS,
        "replicas_killed": len(outcome.kills),
        "redis_restarts": len(outcome.restarts),
        "whole": {
            "sent": len(whole),
            "answered": sum(reply.answered for reply in whole),
            "refused": sum(reply.refused for reply in whole),
            "errors": Counter(reply.code for reply in whole if not reply.answered),
        },
        "streams": {
            "sent": len(streams),
            "answered": sum(reply.answered for reply in streams),
            "errors": Counter(reply.code for reply in streams if not reply.answered),
        },
        "lost": sum(reply.lost for reply in outcome.replies),
        "wrong": sum(reply.wrong for reply in outcome.replies),
        "cache": Counter(reply.cache for reply in answered),
        "scales": Counter(reply.scale for reply in answered),
        "degraded": sum(reply.degraded for reply in answered),
        "seconds_p50": round(statistics.median(seconds), 3),
        "seconds_p95": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
        "seconds_max": round(seconds[-1], 3),
        "metrics": metrics,
        "examples": [str(reply) for reply in failed[:10]],
    }


def draw_timeline(outcome: Run) -> Figure:
    """Every request's time, and when what was killed."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    draw_grid(axes)
    for at in outcome.kills:
        axes.axvline(
            at, color=INK, lw=0.8, label="replica killed" if at == outcome.kills[0] else None
        )
    for at in outcome.restarts:
        first = at == outcome.restarts[0]
        axes.axvline(at, color=INK, lw=0.8, ls=":", label="Redis restarted" if first else None)
    kinds = {
        "answered": (ACCENT, [r for r in outcome.replies if r.answered]),
        "stream broken off": (MUTED, [r for r in outcome.replies if r.streamed and not r.answered]),
        "lost or wrong": ("#b00020", [r for r in outcome.replies if r.lost or r.wrong]),
    }
    for name, (colour, replies) in kinds.items():
        if replies:
            times = [reply.begun for reply in replies], [reply.seconds for reply in replies]
            axes.plot(*times, ".", color=colour, ms=3, label=f"{name} ({len(replies)})")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("seconds to the whole answer")
    axes.set_xlabel("seconds since the run began")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3)
    return figure


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
