"""Pictures for requests. Every seed gives another one, so that a test knows what is cached."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tests.router.support import data_url


def picture(seed: int, side: int = 64) -> bytes:
    """A PNG of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def messages(*images: bytes, question: str = "What is this?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def chat(*images: bytes, question: str = "What is this?", **options: Any) -> dict[str, Any]:
    """A chat request with a short answer."""
    body = {"model": "m3-auto", "max_tokens": 4, "messages": messages(*images, question=question)}
    return body | options
