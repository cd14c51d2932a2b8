"""What this checkpoint costs on this device, measured in the seconds before a replica is ready."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from m3_backend.costs import CostModel, fit_affine
from m3_backend.kv_cache import Span
from m3_backend.messages import ImageInput, digest_of
from m3_backend.runner import ModelRunner

_PREFILL_TOKENS = (16, 64, 160, 320, 640)
_REPEATS = 5


def measure_costs(runner: ModelRunner, *, budget_s: float = 2.0) -> CostModel:
    """Time encoding, prefill at a few lengths and decode; each the best of five after a warm-up.

    Args:
        budget_s: when it is used up, longer prefills are left to the fitted line.
    """
    started = time.perf_counter()
    image = _picture()
    encode_ms = _best_ms(lambda: runner.encode(image))
    lengths: list[int] = []
    prefill_ms: list[float] = []
    shape, dtype = runner.checkpoint.shape, runner.checkpoint.dtype
    table = np.arange(1, runner.cache.tokens + 1)  # nobody else has any rows yet
    for tokens in _PREFILL_TOKENS:
        spent = time.perf_counter() - started
        if tokens >= runner.cache.tokens or (len(lengths) > 1 and spent > budget_s):
            break
        prompt = torch.zeros(tokens, shape.hidden, dtype=dtype, device=runner.checkpoint.device)
        span = Span(table, 0, tokens)
        lengths.append(tokens)
        prefill_ms.append(_best_ms(partial(runner.prefill, [span], [prompt])))
    base, per_token = fit_affine(lengths, prefill_ms)
    decode_ms = _best_ms(partial(runner.decode, [Span(table, lengths[-1], 1)], [0]))
    return CostModel(encode_ms, base, per_token, decode_ms)


def _best_ms(work: Callable[[], torch.Tensor]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work().cpu()  # also waits for the device
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def _picture() -> ImageInput:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "gray").save(file, "PNG")
    return ImageInput(file.getvalue(), digest_of(file.getvalue()), 640, 480)
