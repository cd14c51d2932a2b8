"""Keys and values of all running requests, one preallocated slot each.

Slots 0 … B−1 are in use and no others: a request that leaves is replaced by the last one (`move`).
So a decode step attends over a plain view of the first B slots, cut at the longest request, without
a copy; a mask hides what lies beyond each request's own length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m3_backend.costs import ModelShape


class SlotCache:
    """Stands in for a transformers `Cache`: the attention layers call `update` and nothing else.

    Args:
        slots: most requests that run at once.
        length: tokens per slot, prompt and answer together.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.slots, self.length = slots, length
        size = (shape.layers, slots, shape.kv_heads, length, shape.head_dim)
        # Zeros, not empty: a masked position weighs nothing only as long as it is finite.
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)
        self._first = self._start = 0
        self._positions: Tensor | None = None
        self._longest = 0

    def begin_prefill(self, first: int, start: int = 0) -> None:
        """Next come prompts, written from position `start` on to slots `first`, `first` + 1, …

        What these slots hold before `start` belongs to the prompts.
        """
        self._first, self._start, self._positions = first, start, None

    def begin_decode(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Next comes one token for each of slots 0, 1, …, which hold `lengths` tokens so far.

        Returns:
            The tokens' positions [B, 1] and the mask [B, 1, 1, longest + 1], true where visible.
        """
        positions = torch.tensor(lengths, device=self._keys.device)
        self._positions, self._longest = positions, max(lengths) + 1
        columns = torch.arange(self._longest, device=positions.device)
        return positions[:, None], (columns <= positions[:, None])[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write [B, kv heads, tokens, head size] in place and give what the tokens attend to."""
        own_keys, own_values = self._keys[layer_idx], self._values[layer_idx]
        count, _, tokens, _ = keys.shape
        if self._positions is None:
            slots = slice(self._first, self._first + count)
            end = self._start + tokens
            own_keys[slots, :, self._start : end] = keys
            own_values[slots, :, self._start : end] = values
            if self._start:
                return own_keys[slots, :, :end], own_values[slots, :, :end]
            return keys, values
        rows = torch.arange(count, device=keys.device)
        own_keys[rows, :, self._positions] = keys[:, :, 0]
        own_values[rows, :, self._positions] = values[:, :, 0]
        return own_keys[:count, :, : self._longest], own_values[:count, :, : self._longest]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        for tensor in (self._keys, self._values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def spread(self, sources: Sequence[int], length: int) -> None:
        """Give slot i the first `length` tokens that slot `sources[i]` holds now, for every i."""
        index = torch.tensor(sources, device=self._keys.device)
        for layer in (*self._keys, *self._values):  # one at a time: each makes a copy
            layer[: len(sources), :, :length] = layer[index, :, :length]

    # What transformers asks in order to build a causal mask for a prefill.

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._start + query_length, 0
