"""Pools of replicas that serve some scales only: where a request fits, and how busy they are.

The images of a request are in one prompt and so go to one replica. Where no pool serves all of
their scales together, they get in one of them the next finer scale that it serves, so that the
promise of the decision holds; which pool is settled by the fewest tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from m3_backend.messages import Pool, Priority
from m3_backend.pace import Line
from m3_backend.scales import ScaleLadder
from m3_backend.stats import EngineStats
from router.admission import Admission, Ticket
from router.config import LoadConfig
from router.policy import Decision, ImageCase, ImageChoice, Reason, choice_at


def fitted(
    decision: Decision,
    images: Sequence[ImageCase],
    ladder: ScaleLadder,
    pools: Sequence[Pool],
    cost_ms: Callable[[int], float],
    image_room: int,
) -> Decision:
    """The decision as some pool can serve it. Pure.

    Where the finer scales leave no room in the context the images get coarser ones instead, the
    most tokens that fit, and the promise is void. A looser bound never gives more tokens.

    Args:
        pools: together they serve the ladder; none if all replicas serve all of it.
        cost_ms, image_room: as of `policy.decide`.
    """
    if not pools or any(pool.serves(decision.scales) for pool in pools):
        return decision
    finer = [_moved(decision, images, ladder, pool, up=True) for pool in pools]
    fitting = [each for each in finer if each is not None and _tokens(each) <= image_room]
    if fitting:
        chosen, bound = min(fitting, key=_tokens), decision.max_regret
    else:
        coarser = [_moved(decision, images, ladder, pool, up=False) for pool in pools]
        left = [each for each in coarser if each is not None]
        fitting = [each for each in left if _tokens(each) <= image_room]
        chosen = max(fitting, key=_tokens) if fitting else min(left, key=_tokens)
        bound = None
    return replace(decision, images=chosen, max_regret=bound, cost_ms=cost_ms(_tokens(chosen)))


def _moved(
    decision: Decision,
    images: Sequence[ImageCase],
    ladder: ScaleLadder,
    pool: Pool,
    *,
    up: bool,
) -> tuple[ImageChoice, ...] | None:
    """Every image at the next scale of the pool; None where it has none in that direction."""
    moved = []
    for image, choice in zip(images, decision.images, strict=True):
        beyond = [s for s in pool.scales if (s >= choice.scale if up else s <= choice.scale)]
        if not beyond:
            return None
        scale = min(beyond) if up else max(beyond)
        same = scale == choice.scale
        index = ladder.index(scale)
        moved.append(choice if same else choice_at(image, ladder, index, Reason.POOL))
    return tuple(moved)


def _tokens(choices: Sequence[ImageChoice]) -> int:
    return sum(choice.tokens for choice in choices)


class PoolLoads:
    """Who is let into which pool. Beside `Admission`, which looks at all replicas together and so
    at their mean: one pool may be full while another has nothing to do.

    Args:
        ingresses, clock: as of `Admission`.
    """

    def __init__(
        self,
        config: LoadConfig,
        *,
        ingresses: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._ingresses, self._clock = config, ingresses, clock
        self._pools: dict[str, Admission] = {}

    def of(self, name: str) -> Admission:
        """The load of one pool."""
        if name not in self._pools:
            self._pools[name] = Admission(
                self._config, threads=1, ingresses=self._ingresses, clock=self._clock
            )
        return self._pools[name]

    def least_busy(self, pools: Sequence[Pool], scales: Sequence[int]) -> Pool | None:
        """Of those that serve all of these scales the one with the shortest wait; None without."""
        serving = [pool for pool in pools if pool.serves(scales)]
        now = self._clock()
        return min(serving, key=lambda pool: self.of(pool.name).replicas_wait_s(now), default=None)

    def enter(self, name: str, priority: Priority) -> Ticket:
        """A place in the pool's line.

        Raises:
            OverloadedError: it has as much to do as it may.
        """
        load = self.of(name)
        look, ticket = load.arrive()
        try:
            look.require(priority, self._config)
        except BaseException:
            ticket.close()
            raise
        return ticket

    def owns(self) -> Mapping[str, Line]:
        """What this process has handed to each pool and has not begun there."""
        return {name: load.own for name, load in self._pools.items()}

    def take_report(self, stats: Iterable[EngineStats], owns_then: Mapping[str, Line]) -> None:
        """What all replicas say of themselves; `owns_then` from when they were asked."""
        by_pool: dict[str, list[EngineStats]] = {}
        for each in stats:
            if each.pool:
                by_pool.setdefault(each.pool, []).append(each)
        for name, of_pool in by_pool.items():
            self.of(name).take_report(of_pool, owns_then.get(name, Line()))
