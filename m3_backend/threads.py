"""How many cores the network's operations may use."""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Let every operation of this process run on `count` threads."""
    torch.set_num_threads(count)
