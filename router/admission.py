"""Load → pressure → looser default bounds first, then refusals with a time to come back.

*Pressure* is the estimated wait of a request that arrives now, in units of the longest wait that
the operator accepts (`router.load.max_wait_s`): 0 is an idle service, from 1 on requests are
refused. The wait has two parts, each of them work ÷ measured rate:

    in this process   requests being planned × mean planning time ÷ planning threads
    at the replicas   work in line there (m3_backend/pace.py) ÷ the pace that they measured

Replicas report their line and their pace every `poll_s`; in between this process adds what it has
handed over since, once for every ingress, because the others will have done the same, and takes off
what has begun. What nobody knows yet, the work of a request that is still being planned, counts
like the mean of the last ones.

Loosening follows a *held* pressure: it rises at once, falls slowly and ignores dips of less than a
fifth, so that it neither comes too late nor flaps. Refusal follows the pressure itself: the line is
kept as long as it may be, and no longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from m3_backend.errors import DeadlineExceededError, OverloadedError
from m3_backend.messages import Priority
from m3_backend.pace import EMPTY, Line, wait_s
from m3_backend.stats import EngineStats
from router.config import LoadConfig
from router.errors import ShuttingDownError

HALF_LIFE_S = 1.0  # of the held pressure, when there is less
BACKLASH = 0.2  # share by which it must have fallen before that counts
NEGLIGIBLE = 0.01
STALE_S = 5.0  # after so long without a word of the replicas, only what is known here counts
REMEMBERED = 32  # requests that a mean is made of
PLANNING_S = 0.01  # of a request, until some were measured; the very first is no example


def bounds_under_load(
    default: float, certified: Sequence[float], config: LoadConfig, pressure: float
) -> tuple[float, ...]:
    """The service's regret bounds up to the one in force at a pressure, strict to loose.

    The steps are the certified bounds between the default and the ceiling. They lie evenly between
    `loosen_at` and the refusal of requests, so that the last of them is in force before anybody is
    turned away. More pressure never gives a stricter last bound.
    """
    steps = [bound for bound in certified if default < bound <= config.max_regret_ceiling]
    span = 1.0 - config.loosen_at
    reached = [
        bound
        for index, bound in enumerate(steps)
        if pressure >= config.loosen_at + span * index / len(steps)
    ]
    return (default, *reached)


def limit_of(priority: Priority, config: LoadConfig) -> float:
    """The pressure from which requests of a priority are refused."""
    return config.batch_at if priority == "batch" else 1.0


def refusal(wait: float, limit: float, config: LoadConfig) -> OverloadedError:
    """What a caller hears who cannot be let in; the time is until what waits now has been done."""
    return OverloadedError(
        f"The service has work for {wait:.1f} s waiting, and takes requests up to "
        f"{limit * config.max_wait_s:.1f} s; try again later.",
        retry_after_s=max(1.0, wait),
    )


class HeldPressure:
    """A pressure that rises at once, falls by half in `HALF_LIFE_S`, and ignores small dips."""

    def __init__(self) -> None:
        self.value = 0.0
        self._envelope, self._at = 0.0, 0.0

    def follow(self, pressure: float, now: float) -> float:
        faded = self._envelope * 0.5 ** (max(now - self._at, 0.0) / HALF_LIFE_S)
        self._envelope, self._at = max(pressure, faded), now
        risen = self._envelope > self.value
        if risen or self._envelope < self.value * (1.0 - BACKLASH):
            self.value = self._envelope if self._envelope > NEGLIGIBLE else 0.0
        return self.value


@dataclass(frozen=True, slots=True)
class Look:
    """The load at one moment.

    Args:
        wait_s: estimated, of a request that arrives now.
        pressure: the same ÷ the longest accepted wait.
        held: the pressure that loosening goes by.
    """

    wait_s: float
    pressure: float
    held: float

    def require(self, priority: Priority, config: LoadConfig) -> None:
        """Raises OverloadedError where a request of this priority is not let in."""
        limit = limit_of(priority, config)
        if self.pressure >= limit:
            raise refusal(self.wait_s, limit, config)


@dataclass(frozen=True, slots=True)
class Reported:
    """What the replicas said of themselves, all together, when they were last asked.

    Args:
        line: requests that wait at the replicas.
        own: those of this process that waited then.
        free_slots: places in running batches.
    """

    line: Line = EMPTY
    own: Line = EMPTY
    free_slots: int = 1
    slots_each: int = 1
    pace: float = 1.0
    answer_tokens: float = 16.0
    at: float = 0.0


class Mean:
    """Of the last values, more or less.

    Args:
        first: what to believe before there are any.
        weight: values that it stands for.
    """

    def __init__(self, first: float = 0.0, weight: int = 0) -> None:
        self.value = first
        self._seen = weight

    def saw(self, value: float) -> None:
        self._seen = min(self._seen + 1, REMEMBERED)
        self.value += (value - self.value) / self._seen


class Ticket:
    """One request between the door and the end of its answer."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._planning = True
        self._line = EMPTY
        self._in_line = False
        self._along: Ticket | None = None

    def along(self, other: Ticket) -> None:
        """From here on `other`, of the pool that the request goes to, goes through the same."""
        self._along = other

    def planned(self, line: Line, planning_s: float) -> None:
        """It is known what it will take, and it goes to a replica.

        Args:
            planning_s: what planning took here, without what was fetched from elsewhere.
        """
        self._admission.planning_took(planning_s)
        self._leave_planning()
        self._admission.work.saw(line)
        self._line = line
        self._stand_in_line()
        if self._along is not None:
            self._along.planned(line, planning_s)

    def begun(self) -> None:
        """A replica has taken it up."""
        if self._in_line:
            self._admission.own -= self._line
            self._in_line = False
        if self._along is not None:
            self._along.begun()

    def lost(self) -> None:
        """That replica is gone, and the request goes to another one."""
        self._stand_in_line()
        if self._along is not None:
            self._along.lost()

    def close(self) -> None:
        """It is over, at whatever point."""
        self._leave_planning()
        self.begun()
        self._admission.closed(self)
        if self._along is not None:
            self._along.close()

    def _stand_in_line(self) -> None:
        if not self._in_line:
            self._admission.own += self._line
            self._in_line = True

    def _leave_planning(self) -> None:
        if self._planning:
            self._admission.left_planning()
            self._planning = False


class MeanLine:
    """The mean work of the last requests."""

    def __init__(self) -> None:
        self._start_ms, self._hold_ms = Mean(), Mean()

    def saw(self, line: Line) -> None:
        self._start_ms.saw(line.start_ms)
        self._hold_ms.saw(line.hold_ms)

    def of(self, count: int) -> Line:
        return Line(count, count * self._start_ms.value, count * self._hold_ms.value)


class Admission:
    """Who is let in, and what the service's default bound is, as the load has it.

    Lives on one event loop; a `Look` may go anywhere.

    Args:
        threads: that plan requests.
        ingresses: processes like this one, this one included, among which requests are spread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: LoadConfig,
        threads: int,
        *,
        ingresses: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.clock = config, clock
        self.own = EMPTY  # handed over from here and not yet taken up
        self.work = MeanLine()
        self.reported = Reported(at=clock())
        self._threads, self._ingresses = threads, ingresses
        self._planning = 0
        self._planning_s = Mean(PLANNING_S, weight=REMEMBERED // 4)
        self._open: set[Ticket] = set()
        self._held = HeldPressure()
        self._stopped = False
        self.latest = Look(0.0, 0.0, 0.0)

    @property
    def in_flight(self) -> int:
        """Requests that were let in and are not over."""
        return len(self._open)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """From here on nobody is let in; those who are inside are answered."""
        self._stopped = True

    def look(self) -> Look:
        """The load now. Cheap."""
        now = self.clock()
        wait = self._wait_s(now)
        pressure = wait / self.config.max_wait_s
        self.latest = Look(wait, pressure, self._held.follow(pressure, now))
        return self.latest

    def check_open(self) -> Look:
        """Whether anybody is let in at all; for the door, before a request is read.

        Raises:
            ShuttingDownError: the service is being stopped.
            OverloadedError: not even interactive requests are.
        """
        if self._stopped:
            raise ShuttingDownError
        look = self.look()
        look.require("interactive", self.config)
        return look

    def arrive(self) -> tuple[Look, Ticket]:
        """A request that is let in, as far as can be said before it is read.

        Raises:
            ServiceError: as `check_open`.
        """
        look = self.check_open()
        ticket = Ticket(self)
        self._open.add(ticket)
        self._planning += 1
        return look, ticket

    def check_reachable(self, alone_ms: float, left_s: float) -> None:
        """Refuses at once what could not be answered in time.

        Args:
            alone_ms: estimated time of its whole answer on an idle replica.
            left_s: until its deadline.

        Raises:
            OverloadedError: because of what waits before it.
            DeadlineExceededError: it could not even on an idle replica.
        """
        if alone_ms / 1e3 > left_s:
            raise DeadlineExceededError(
                f"The answer takes an estimated {alone_ms:.0f} ms, and its deadline leaves "
                f"{max(left_s, 0.0) * 1e3:.0f} ms; allow it more time or ask for less."
            )
        waits = self.replicas_wait_s(self.clock())
        if waits + alone_ms / 1e3 > left_s:
            raise OverloadedError(
                f"The request would wait an estimated {waits:.1f} s, and so miss its deadline; "
                "allow it more time, or try again later.",
                retry_after_s=max(1.0, waits),
            )

    def take_report(self, stats: Iterable[EngineStats], own_then: Line) -> None:
        """What all replicas say of themselves.

        Args:
            own_then: `own` when they were asked.
        """
        stats = tuple(stats)
        if not stats:
            return
        self.reported = Reported(
            line=sum((each.line for each in stats), EMPTY),
            own=own_then,
            free_slots=sum(max(each.slots - each.running, 0) for each in stats),
            slots_each=max(each.slots for each in stats),
            pace=sum(each.pace for each in stats),
            answer_tokens=sum(each.answer_tokens for each in stats) / len(stats),
            at=self.clock(),
        )

    def replicas_wait_s(self, now: float) -> float:
        """Until a replica takes up a request that is handed over now."""
        return wait_s(self._line(now), self.reported.free_slots, self.reported.pace)

    def planning_took(self, seconds: float) -> None:
        """Of one request, its wait for a thread included; so it is shared by those who waited."""
        self._planning_s.saw(seconds * self._threads / max(self._planning, self._threads))

    def left_planning(self) -> None:
        self._planning -= 1

    def closed(self, ticket: Ticket) -> None:
        self._open.discard(ticket)

    def _wait_s(self, now: float) -> float:
        planning_s = self._planning * self._planning_s.value / self._threads
        line = self._line(now) + self.work.of(self._planning)
        return planning_s + wait_s(line, self.reported.free_slots, self.reported.pace)

    def _line(self, now: float) -> Line:
        """What was handed to the replicas by anybody, and has not begun."""
        reported = self.reported
        fresh = now - reported.at < STALE_S
        others = reported.line - reported.own if fresh else EMPTY
        since = self.own - reported.own
        return others + since * (self._ingresses - 1) + self.own
