"""The vision tower for many threads: pictures that wait together are encoded in one pass.

Every caller decodes its own picture, beside the others, and puts it in line. The tower's own
threads take along those that have come to wait, up to a bound, so that nobody's answer stands still
behind a long pass on the same device. They are few, because what a pass needs of memory stays with
the thread that ran it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m3_backend.feature_cache import Encoded
from m3_backend.messages import ImageInput
from m3_backend.runner import ModelRunner


@dataclass(eq=False, slots=True)
class _Place:
    """One picture in line."""

    pixels: Tensor
    encoded: Future[Encoded] = field(default_factory=Future)


class VisionTower:
    """Thread-safe.

    Args:
        most: pictures of one pass.
        passes: that may run at once, each on a thread of its own.
        on_thread: what every such thread does first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: ModelRunner,
        most: int,
        passes: int = 1,
        on_thread: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner, self._most, self._clock = runner, most, clock
        self._lock = threading.Lock()
        self._line: deque[_Place] = deque()
        self._threads = ThreadPoolExecutor(
            passes, thread_name_prefix="tower", initializer=on_thread
        )

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
            self._line.append(place)
        self._threads.submit(self._pass)  # finds the line empty if another took this one along
        encoded = place.encoded.result()
        return Encoded(encoded.features, decode_ms + encoded.ms)

    def close(self) -> None:
        """Ends the threads once the line is empty."""
        self._threads.shutdown()

    def _pass(self) -> None:
        with self._lock:
            places = [self._line.popleft() for _ in range(min(len(self._line), self._most))]
        if places and not self._tell(places):
            for place in places:  # the others need not go with the one at fault
                self._tell([place])

    def _tell(self, places: list[_Place]) -> bool:
        """Encode them together. Whether everyone knows what became of it: not of a failed many."""
        try:
            encoded = self._together(places)
        except Exception as error:
            if len(places) > 1:
                return False
            places[0].encoded.set_exception(error)
            return True
        for place, one in zip(places, encoded, strict=True):
            place.encoded.set_result(one)
        return True

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
