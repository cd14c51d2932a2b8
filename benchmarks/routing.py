"""What a routing decision costs on one core: decoding, features, prediction, apart.

Sizes are those people send: the model's own 336×336, one megapixel, twelve. Run it with nothing
else running; figures are medians of repeated calls in this one process.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

from benchmarks.frontier import ARTIFACT
from benchmarks.results import write
from m3_backend.messages import ImageInput, digest_of
from m3_backend.training.worlds import draw
from predictor.image_features import describe, open_view
from predictor.predictor import Predictor

SIZES = {"336×336": (336, 336), "1 MP": (1200, 900), "12 MP": (4000, 3000)}
QUESTION = "what does the small text at the bottom say?"


def run() -> None:
    predictor = Predictor.load(ARTIFACT)
    rows: list[dict[str, Any]] = []
    for size, (width, height) in SIZES.items():
        for kind in ("JPEG", "PNG"):
            data = encoded(width, height, kind)
            image = ImageInput(data, digest_of(data), width, height)
            repeats = 5 if width > 2000 else 30
            view = open_view(data)
            predictor.predict(image, QUESTION)
            rows.append(
                {
                    "image": f"{size} {kind}",
                    "decode_ms": median_ms(lambda data=data: open_view(data), repeats),
                    "features_ms": median_ms(lambda view=view: describe(view), repeats),
                    "predict_cached_ms": median_ms(
                        lambda image=image: predictor.predict(image, QUESTION), 200
                    ),
                }
            )
    print("\nrouting: median milliseconds on one core")
    print(f"{'image':14} {'decode':>8} {'features':>9} {'predict':>8}")
    for row in rows:
        print(
            f"{row['image']:14} {row['decode_ms']:8.2f} {row['features_ms']:9.2f} "
            f"{row['predict_cached_ms']:8.3f}"
        )
    print(write("routing", {"rows": rows}))


def encoded(width: int, height: int, kind: str) -> bytes:
    """A picture with large shapes and small print, at the wanted size."""
    picture = draw("benchmark", 1).image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def median_ms(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return round(statistics.median(times), 3)
