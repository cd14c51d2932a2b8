"""What an operator can set about the front door. Unknown keys are errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class ImageLimits(BaseModel):
    """What an uploaded picture may be. Checked on the file's header, before a pixel is decoded.

    `max_side` is there because the model pads a picture to a square: one of 50,000 × 10 pixels is
    small until then. `max_total_pixels` bounds the decoding that one request can ask for: a few
    kilobytes of file may hold any number of pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(default=10 * MIB, gt=0, description="Bytes of one encoded image.")
    max_pixels: int = Field(default=50_000_000, gt=0, description="Width × height of one image.")
    max_side: int = Field(
        default=12_000, gt=0, description="Pixels of the longer side of one image."
    )
    max_count: int = Field(default=16, gt=0, description="Images in one conversation.")
    max_total_pixels: int = Field(
        default=100_000_000, gt=0, description="Width × height of all images of a conversation."
    )


class RouterConfig(BaseModel):
    """The `router` section of the config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=20 * MIB, gt=0, description="Bytes of one request body.")
    images: ImageLimits = ImageLimits()
    max_regret: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Regret bound of requests that do not set their own.",
    )
    max_tokens: int = Field(
        default=256, gt=0, description="Answer length of requests that do not set their own."
    )
    request_timeout_s: float = Field(
        default=120.0, gt=0.0, description="Deadline of a request, counted from its arrival."
    )
    planning_threads: int = Field(
        default=2, gt=0, description="Threads that parse requests and predict, off the event loop."
    )
