"""The vision tower for many threads: pictures that wait together are encoded in one pass.

Every caller decodes its own picture, beside the others. Then whoever finds the tower free takes
along those that have come to wait, up to a bound, so that nobody's answer stands still behind a
long pass on the same device; the first of those that are left takes the next turn.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m3_backend.feature_cache import Encoded
from m3_backend.messages import ImageInput
from m3_backend.runner import ModelRunner


@dataclass(eq=False, slots=True)
class _Place:
    """One picture in line. Its turn brings what became of it, or whom it is to lead in a pass."""

    pixels: Tensor
    turn: Future[Encoded | list[_Place]] = field(default_factory=Future)


class VisionTower:
    """Thread-safe.

    Args:
        most: pictures of one pass.
        passes: that may run at once.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: ModelRunner,
        most: int,
        passes: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner, self._most, self._clock = runner, most, clock
        self._lock = threading.Lock()
        self._line: deque[_Place] = deque()
        self._free = passes

    def encode(self, image: ImageInput) -> Encoded:
        """Image file → full-grid features [tiles, grid², hidden] in main memory.

        Their time is that of decoding and of this picture's share of its pass, without waiting.

        Raises:
            InvalidImageError: the bytes do not decode, or not to the declared size where it counts.
        """
        began = self._clock()
        place = _Place(self._runner.pixels(image))
        decode_ms = (self._clock() - began) * 1e3
        with self._lock:
            leads = self._free > 0
            self._free -= leads
            if not leads:
                self._line.append(place)
        turn = [place] if leads else place.turn.result()
        encoded = self._lead(turn) if isinstance(turn, list) else turn
        return Encoded(encoded.features, decode_ms + encoded.ms)

    def _lead(self, places: list[_Place]) -> Encoded:
        """Run a pass for these, the first of which is the caller's own."""
        own, *others = places
        try:
            encoded = self._together(places)
        except Exception:
            if not others:
                raise
            for place in others:  # the others need not go with the one at fault
                self._alone(place)
            return self._together([own])[0]
        else:
            for place, one in zip(others, encoded[1:], strict=True):
                place.turn.set_result(one)
            return encoded[0]
        finally:
            self._hand_over()

    def _together(self, places: list[_Place]) -> list[Encoded]:
        began = self._clock()
        tiles = [len(place.pixels) for place in places]
        features = self._runner.features(torch.cat([place.pixels for place in places]))
        tile_ms = (self._clock() - began) * 1e3 / sum(tiles)
        # Copies, since whoever keeps one picture's features would keep the memory of all.
        return [
            Encoded(part.clone() if len(places) > 1 else part, tile_ms * len(part))
            for part in torch.split(features, tiles)
        ]

    def _alone(self, place: _Place) -> None:
        try:
            place.turn.set_result(self._together([place])[0])
        except Exception as error:
            place.turn.set_exception(error)

    def _hand_over(self) -> None:
        """To the first of those that have come to wait, with those behind it."""
        with self._lock:
            count = min(len(self._line), self._most)
            following = [self._line.popleft() for _ in range(count)]
            self._free += not following
        if following:
            following[0].turn.set_result(following)
