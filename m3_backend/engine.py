"""The engine of a replica: requests of any scale and length share one batch, step by step.

A request's life:

    generate   (the caller's event loop)  refused if too many wait, or too long for its deadline
    _prepare   (preparation threads)      validate → tokenise → features from cache or vision tower
    _serve     (the engine's own thread)  schedule → run → emit: a piece of its prompt per step,
                                          then one token of its answer

It ends with Finished, with an error, or when the caller closes the iterator; its memory is free at
the next step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from m3_backend.answer_text import AnswerText
from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.costs import CostModel
from m3_backend.errors import (
    BackendError,
    DeadlineExceededError,
    OverloadedError,
    ServiceError,
)
from m3_backend.feature_cache import FeatureCache
from m3_backend.job import Job, Work
from m3_backend.kv_cache import Span
from m3_backend.kv_memory import KvMemory
from m3_backend.measure import measure_costs
from m3_backend.messages import (
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    ImageInput,
    ModelInfo,
    Priority,
    Sampling,
    Started,
    TokenLogprob,
)
from m3_backend.pace import EMPTY, AnswerLength, Line, Pace, wait_s
from m3_backend.preparation import Preparation
from m3_backend.prompt import Prompt
from m3_backend.request_scoring import RequestScorer
from m3_backend.runner import ModelRunner
from m3_backend.sampling import choose, token_logprob
from m3_backend.scheduler import Piece, Scheduler, Step
from m3_backend.stats import EngineStats, MemoryStats
from m3_backend.threads import use_threads
from m3_backend.tower import VisionTower
from m3_backend.waiting import WaitingLine

_log = logging.getLogger(__name__)

_CACHE_BYTES = 256 << 20
_STEP_MS = 25.0  # of prefill in one step, and of one pass of the vision tower
_CPU_TOWER_MS = 100.0  # of the latter on a CPU, where it holds nobody up who is answering
_SMALLEST_BUDGET = 64
_SHORT = 64  # prompt tokens that hardly make a pass over answers longer
_FATAL_FAILURES = 3  # one request that the model cannot take looks like a lost device, too


class Engine(Protocol):
    """What a replica needs of an engine; another one fits behind the same four names."""

    @property
    def info(self) -> ModelInfo: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """One Started, Deltas, one Finished, from any event loop. `aclose()` cancels the request.

        Raises:
            ServiceError: from the iterator, at any point before Finished.
        """

    def stats(self) -> EngineStats:
        """Raises BackendError once the engine no longer runs."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How much an engine takes on.

    Args:
        max_batch: requests that run at once, if their tokens fit into KV memory.
        max_context: tokens per request, prompt and answer; None takes the checkpoint's own bound.
        kv_tokens: tokens of KV memory, taken at the start; None is room for `max_batch` requests of
            `max_context` tokens.
        max_waiting: requests beyond the batch that are admitted; the next one is refused.
        prefill_budget: prompt tokens taken up per step; None is as many as this device prefills
            in 25 ms, so that nobody's answer waits longer than that for others' prompts.
        preparation_threads: requests whose images are fetched or decoded at once.
        threads: CPU threads of one torch operation; None leaves torch's own choice.
        towers: passes of the vision tower at once on a CPU, where more than one pays if there are
            more cores than `threads`. An accelerator runs one.
        replica: names this replica in Started.
    """

    max_batch: int = 16
    max_context: int | None = None
    kv_tokens: int | None = None
    max_waiting: int = 256
    prefill_budget: int | None = None
    preparation_threads: int = 4
    threads: int | None = None
    towers: int = 1
    replica: str = ""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a step gave one request: the next token and the logits [vocabulary] it came from."""

    job: Job
    token: int
    logits: Tensor


class TorchEngine:
    """Continuous batching on transformers' Llama. Use `open`.

    Args:
        cache: closed with the engine.
        clock: seconds, monotonic, for measurements.
        wall: Unix time in seconds, for deadlines.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        cache: FeatureCache,
        settings: EngineSettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._use_threads = partial(_use_threads, settings.threads)
        self._use_threads()
        context = min(settings.max_context or checkpoint.max_context, checkpoint.max_context)
        memory = KvMemory(settings.kv_tokens or settings.max_batch * context)
        context = min(context, memory.tokens)
        self._settings, self._cache = settings, cache
        self._clock, self._wall = clock, wall
        self._tokenizer, self._eos = checkpoint.tokenizer, checkpoint.eos
        self._runner = ModelRunner(checkpoint, tokens=memory.tokens)
        self._info = ModelInfo(
            name=checkpoint.name,
            identity=checkpoint.identity,
            processor=checkpoint.preprocessing.identity,
            ladder=checkpoint.ladder,
            tiling=checkpoint.tiling,
            max_context=context,
            costs=measure_costs(self._runner),
        )
        on_cpu = checkpoint.device.type == "cpu"
        most = _images_within(_CPU_TOWER_MS if on_cpu else _STEP_MS, self._info.costs)
        towers = settings.towers if on_cpu else 1
        self._tower = VisionTower(self._runner, most, towers, self._use_threads, clock)
        self._preparation = Preparation(self._runner, self._tower, cache, memory, context)
        budget = settings.prefill_budget or _tokens_within(_STEP_MS, self._info.costs)
        self._scheduler: Scheduler[Job] = Scheduler(settings.max_batch, budget, memory)
        self._wake = threading.Condition()
        self._jobs: set[Job] = set()  # all between submission and their last event
        self._unprepared: WaitingLine[Job] = WaitingLine()
        self._arrivals: list[Job] = []
        self._pace, self._answers = Pace(), AnswerLength()
        self._busy_since: float | None = None  # the last look, if somebody waited to be taken up
        self._had_line = False  # and not only for its own preparation
        self._closing = False
        self._failures = 0  # of the device, since the last step that gave anything
        self._pool = ThreadPoolExecutor(
            settings.preparation_threads,
            thread_name_prefix="prepare",
            initializer=self._use_threads,
        )
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        cache: FeatureCache | None = None,
        settings: EngineSettings | None = None,
    ) -> TorchEngine:
        """Load a checkpoint, measure it and start serving; see `open_checkpoint` for the arguments.

        Raises:
            CheckpointError: the checkpoint cannot be opened.
        """
        checkpoint = open_checkpoint(name, dtype=dtype, device=device)
        return cls(checkpoint, cache or FeatureCache(_CACHE_BYTES), settings or EngineSettings())

    @property
    def info(self) -> ModelInfo:
        return self._info

    def stats(self) -> EngineStats:
        """The replica's load.

        Raises:
            BackendError: the engine no longer runs, so that a health check fails.
        """
        if not self._thread.is_alive():
            raise BackendError("The engine has stopped; the replica must be replaced.")
        with self._wake:
            running, memory = len(self._scheduler.running), self._scheduler.memory
            return EngineStats(
                running=running,
                waiting=max(len(self._jobs) - running, 0),
                outstanding_tokens=sum(job.outstanding_tokens for job in self._jobs),
                slots=self._settings.max_batch,
                cache=self._cache.stats(),
                line=self._line(),
                pace=self._pace.value,
                answer_tokens=self._answers.mean,
                memory=MemoryStats(
                    tokens=memory.tokens,
                    held=memory.held,
                    idle=memory.idle,
                    joined=self._scheduler.joined,
                    preempted=self._scheduler.preempted,
                ),
            )

    def scorer(self) -> RequestScorer:
        """Scores requests beside this engine, for shadow labels."""
        return RequestScorer(self._runner, self._preparation, self._info.max_context)

    def close(self) -> None:
        """Stop at the next step. Requests that are still open get a BackendError."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        self._tower.close()
        self._cache.close()

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `Engine.generate`."""
        return self._stream(
            Work(
                make_prompt=partial(self._preparation.conversation, request),
                images=request.images,
                scales=request.scales,
                sampling=request.sampling,
                salt=request.cache_salt,
                deadline=request.deadline,
                priority=request.priority,
                keep_s=request.keep_s,
            )
        )

    def generate_ids(
        self,
        prompt: Prompt,
        images: Sequence[ImageInput],
        scales: Sequence[int],
        sampling: Sampling,
        *,
        ignore_eos: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Like `generate`, for token ids: what checkpoints without a tokenizer can be asked."""
        return self._stream(
            Work(
                make_prompt=lambda: prompt,
                images=tuple(images),
                scales=tuple(scales),
                sampling=sampling,
                ignore_eos=ignore_eos,
            )
        )

    async def _stream(self, work: Work) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        job = Job(
            work,
            deliver=partial(_deliver, loop, events),
            text=AnswerText(self._decode_text, work.sampling.stop),
            context=self._info.max_context,
            submitted=self._clock(),
        )
        self._submit(job)
        try:
            while True:
                item = await events.get()
                if isinstance(item, ServiceError):
                    raise item
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            job.cancelled = True

    def _submit(self, job: Job) -> None:
        with self._wake:
            if self._closing:
                raise BackendError(
                    "The replica is shutting down; send the request again.",
                    code="replica_stopping",
                    status=503,
                    retry_after_s=1.0,
                )
            if len(self._jobs) >= self._settings.max_batch + self._settings.max_waiting:
                raise OverloadedError(
                    "Too many requests are waiting; retry later.", retry_after_s=self._backlog_s()
                )
            self._check_reachable(job)
            if self._busy_since is None:
                self._busy_since = job.submitted
            self._jobs.add(job)
            self._unprepared.add(job)
            self._pool.submit(self._prepare_next)

    def _backlog_s(self) -> float:
        """Seconds in which a full batch works off what is outstanding, one token per step."""
        steps = sum(job.outstanding_tokens for job in self._jobs) / self._settings.max_batch
        return max(1.0, steps * self._info.costs.decode_token_ms / 1e3)

    def _check_reachable(self, job: Job) -> None:
        """Refuses what would wait beyond its deadline, and so take the time of others in vain."""
        if job.work.deadline is None:
            return
        slots = self._settings.max_batch
        free = slots - len(self._scheduler.running)
        waits_s = wait_s(self._line(job.priority), free, self._pace.value)
        left_s = job.work.deadline - self._wall()
        if 0 < left_s < waits_s + self._alone(job).start_ms / 1e3:
            raise OverloadedError(
                "The request would wait here until after its deadline; allow it more time, or "
                "retry later.",
                retry_after_s=max(1.0, waits_s),
            )

    def _line(self, priority: Priority = "batch") -> Line:
        """The requests in front of a new one: of an interactive one only those of its kind."""
        return sum(
            (
                self._alone(job)
                for job in self._jobs
                if not (job.admitted or job.cancelled) and priority in ("batch", job.priority)
            ),
            EMPTY,
        )

    def _alone(self, job: Job) -> Line:
        return job.line(self._info.costs, self._settings.max_batch, self._answers.mean)

    def _prepare_next(self) -> None:
        """Whose turn it is now, which need not be the one that this call was for."""
        with self._wake:
            job = self._unprepared.pop()
        self._prepare(job)

    def _prepare(self, job: Job) -> None:
        check_wanted = partial(self._check_wanted, job)
        try:
            check_wanted()
            prompt, per_image, room = self._preparation.measure(job.work)
            job.prompt_tokens = prompt.length(per_image)
            job.prepared = self._preparation.prepare(
                job.work, prompt, per_image, room, check_wanted, whole=job.alone
            )
        except ServiceError as error:
            self._end(job, error)
        except Exception:
            _log.exception("a request could not be prepared")
            self._end(job, BackendError("The model could not read this request."))
            if job.prompt_tokens:  # it was measured, so this happened on the device
                self._device_failed()
        else:
            with self._wake:
                self._arrivals.append(job)
                self._wake.notify()

    # From here on: the engine's own thread.

    def _serve(self) -> None:
        self._use_threads()
        try:
            while self._collect():
                step = self._scheduler.schedule()
                self._prepare_again(step.unprepared)
                self._note_pace(step)
                for pieces in _passes(step):
                    self._emit(*self._run(pieces))
        except Exception:
            _log.exception("the engine stopped: its memory can no longer be trusted")
        with self._wake:
            self._closing = True
            left = tuple(self._jobs)
        for job in left:
            lost = "The replica shut down with this request on it; send the request again."
            self._end(job, BackendError(lost, code="replica_lost", retry_after_s=1.0))

    def _collect(self) -> bool:
        """Wait for work, take in what arrived and drop what nobody waits for. False: stop."""
        scheduler = self._scheduler
        with self._wake:
            while not (self._closing or self._arrivals or scheduler.running or scheduler.waiting):
                self._wake.wait()
            arrivals, self._arrivals = self._arrivals, []
        for job in arrivals:
            scheduler.add(job)
        for job in (*scheduler.waiting, *scheduler.running):
            try:
                self._check_wanted(job)
            except ServiceError as error:
                scheduler.remove(job)
                self._end(job, error)
        return not self._closing

    def _note_pace(self, step: Step[Job]) -> None:
        """What was taken up since the last look, if somebody waited all the while.

        The time that answers take only counts where others waited for their slots.
        """
        now = self._clock()
        with self._wake:
            begun = [piece.request for piece in step.prefill if not piece.request.admitted]
            taken = list(map(self._alone, begun))
            for job in begun:
                job.admitted = now
            work_ms = sum(job.start_ms + self._had_line * job.hold_ms for job in taken)
            if self._busy_since is not None:
                self._pace.observe(now - self._busy_since, work_ms)
            self._had_line = bool(self._unprepared or self._scheduler.waiting)
            self._busy_since = now if self._anybody_waits() else None
        for job in begun:
            self._start(job)

    def _prepare_again(self, jobs: Sequence[Job]) -> None:
        """The prefixes that they were prepared without have been evicted in the meantime."""
        for job in jobs:
            job.alone = True
            with self._wake:
                self._unprepared.add(job)
            self._pool.submit(self._prepare_next)

    def _run(self, pieces: Sequence[Piece[Job]]) -> tuple[list[_Outcome], list[Job]]:
        """One forward pass: what it gave, and whom a crash took along."""
        outcomes: list[_Outcome] = []
        failed: list[Job] = []
        self._pass(pieces, outcomes, failed)
        answering = [piece for piece in pieces if piece.request.is_answering]
        if failed and len(answering) < len(pieces) > 1:
            failed = []  # the others need not go with the prompt at fault
            if answering:
                self._pass(answering, outcomes, failed)
            for piece in pieces:
                if piece not in answering:
                    self._pass((piece,), outcomes, failed)
        if outcomes:
            with self._wake:
                self._failures = 0
        elif failed:
            self._device_failed()
        return outcomes, failed

    def _pass(
        self, pieces: Sequence[Piece[Job]], outcomes: list[_Outcome], failed: list[Job]
    ) -> None:
        """One forward pass, and a token for each of those whose turn it is to get one."""
        try:
            logits = self._forward(pieces)
            last = [index for index, piece in enumerate(pieces) if piece.is_last]
            complete, logits = [pieces[index].request for index in last], logits[last]
            sampling = [job.work.sampling for job in complete]
            tokens = choose(logits, sampling, [job.draw() for job in complete])
        except Exception:
            _log.exception("a step of %d requests failed", len(pieces))
            failed += (piece.request for piece in pieces)
        else:
            for piece in pieces:
                self._scheduler.advance(piece.request, piece.tokens)
            outcomes += map(_Outcome, complete, tokens, logits)

    def _forward(self, pieces: Sequence[Piece[Job]]) -> Tensor:
        """Logits [pieces, vocabulary]; those that are answering stand first."""
        spans, embed = _spans(pieces), self._runner.embed_tokens
        last = [p.request.tokens[-1] for p in pieces if p.request.is_answering]
        if len(last) == len(pieces):
            return self._runner.decode(spans, last)
        prompts = [p.request.piece(p.tokens, embed) for p in pieces[len(last) :]]
        return self._runner.prefill(spans, [embed(last), *prompts] if last else prompts)

    def _start(self, job: Job) -> None:
        ready = job.ready
        elapsed_ms = (job.admitted - job.submitted) * 1e3
        job.deliver(
            Started(
                image_tokens=ready.image_tokens,
                prompt_tokens=job.prompt_tokens,
                cache=ready.cache,
                queue_ms=max(elapsed_ms - ready.fetch_ms - ready.encode_ms, 0.0),
                fetch_ms=ready.fetch_ms,
                encode_ms=ready.encode_ms,
                replica=self._settings.replica,
                degraded=("redis",) if ready.degraded else (),
            )
        )

    def _emit(self, outcomes: list[_Outcome], failed: list[Job]) -> None:
        now = self._clock()
        for outcome in outcomes:
            try:
                self._extend(outcome, now)
            except Exception:
                _log.exception("an answer could not be emitted")
                failed.append(outcome.job)
        for job in failed:
            self._scheduler.remove(job)
            self._end(job, BackendError("The model failed on this request; try it again."))

    def _extend(self, outcome: _Outcome, now: float) -> None:
        """Append the token to its answer and tell the caller; end the answer where it ends."""
        job, token = outcome.job, outcome.token
        job.tokens.append(token)
        if len(job.tokens) == 1:
            job.first_token_at = now
        reason: FinishReason | None = None
        if token in self._eos and not job.work.ignore_eos:
            if rest := job.text.finish():
                job.deliver(Delta(rest))
            reason = "stop"
        else:
            text = job.text.push(token)
            if not job.text.stopped and len(job.tokens) >= job.ready.limit:
                text += job.text.finish()
                reason = "length"
            if job.text.stopped:
                reason = "stop"
            job.deliver(Delta(text, (token,), self._logprobs(outcome)))
        if reason is not None:
            self._answers.saw(len(job.tokens))
            self._scheduler.remove(job)
            self._end(
                job,
                Finished(
                    reason=reason,
                    completion_tokens=len(job.tokens),
                    prefill_ms=(job.first_token_at - job.admitted) * 1e3,
                    decode_ms=(now - job.first_token_at) * 1e3,
                ),
            )

    def _logprobs(self, outcome: _Outcome) -> tuple[TokenLogprob, ...]:
        alternatives = outcome.job.work.sampling.top_logprobs
        if alternatives is None:
            return ()
        return (token_logprob(outcome.logits, outcome.token, alternatives, self._spell),)

    # Any thread.

    def _end(self, job: Job, last: Finished | ServiceError) -> None:
        """The last event of a request; only the first call for one counts."""
        with self._wake:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            if not self._anybody_waits():
                self._busy_since = None
        job.deliver(last)

    def _anybody_waits(self) -> bool:
        return any(not job.admitted for job in self._jobs)

    def _device_failed(self) -> None:
        """Stop once that is all it does, so that the replica is replaced."""
        with self._wake:
            self._failures += 1
            if self._failures == _FATAL_FAILURES:
                _log.error("the engine stops: the device failed %d times in a row", self._failures)
                self._closing = True
                self._wake.notify()

    def _check_wanted(self, job: Job) -> None:
        if job.cancelled:
            raise BackendError("The request was cancelled.")
        if job.work.deadline is not None and self._wall() >= job.work.deadline:
            raise DeadlineExceededError("The request's deadline has passed; allow it more time.")

    def _decode_text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids) if self._tokenizer else ""

    def _spell(self, token: int) -> str:
        return self._tokenizer.spell(token) if self._tokenizer else str(token)


def _passes(step: Step[Job]) -> list[list[Piece[Job]]]:
    """The forward passes of a step: answers and the ends of short prompts, then all other prompts.

    So a short question gets its first token without the prompts that share its step, and answers
    and short prompts cost one pass together.
    """
    first = [Piece(job, 1) for job in step.decode]
    rest: list[Piece[Job]] = []
    for piece in step.prefill:
        (first if piece.is_last and piece.tokens <= _SHORT else rest).append(piece)
    return [pieces for pieces in (first, rest) if pieces]


def _spans(pieces: Sequence[Piece[Job]]) -> list[Span]:
    spans = []
    for piece in pieces:
        job = piece.request
        assert job.holding is not None
        spans.append(Span(job.holding.table, job.cached, piece.tokens))
    return spans


def _tokens_within(milliseconds: float, costs: CostModel) -> int:
    """Prompt tokens that are prefilled in that time."""
    spare_ms = milliseconds - costs.prefill_base_ms
    return max(_SMALLEST_BUDGET, int(spare_ms / max(costs.prefill_token_ms, 1e-6)))


def _images_within(milliseconds: float, costs: CostModel) -> int:
    """Images that are encoded in that time, one after the other."""
    return max(1, int(milliseconds / max(costs.encode_ms, 1e-6)))


def _use_threads(count: int | None) -> None:
    """For this thread's own operations: each thread has a number of its own from its start."""
    if count is not None:
        use_threads(count)


def _deliver(
    loop: asyncio.AbstractEventLoop,
    events: asyncio.Queue[Event | ServiceError],
    item: Event | ServiceError,
) -> None:
    try:
        loop.call_soon_threadsafe(events.put_nowait, item)
    except RuntimeError:
        _log.debug("a caller's event loop closed before its request ended")
