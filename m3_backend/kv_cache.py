"""Keys and values of all running requests, and attention over them.

Requests run together as one flat row of tokens, without padding: each brings a *span*, some new
tokens behind those it has in memory. Attention over a span of several tokens is computed by itself;
those of single tokens, which is what answering is, in groups of similar length, each gathered into
one block.

On a CPU these groups are small enough for the block to stay in the processor's cache, and are
computed in 32 bits: with 16 the fused kernel takes several times as long for a single query. (What
is stored has the model's own type; widening it changes no value.) And there the flat row is padded
to one of a few lengths, because every new one has its matrix products compiled (kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m3_backend.attention import causal_products, is_quicker
from m3_backend.costs import ModelShape
from m3_backend.kv_memory import Rows

_SIMILAR = 16
_CPU_GROUP = 2048  # gathered tokens
_MANY = 100  # new tokens, from which plain products pay on a CPU
_EIGHTH = 3  # log2 of the lengths per octave that batches are padded to on a CPU


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """`new` tokens behind `cached` ones.

    Args:
        table: the row of every token, cached and new.
    """

    table: Rows
    cached: int
    new: int

    @property
    def end(self) -> int:
        return self.cached + self.new


@dataclass(frozen=True, slots=True, eq=False)
class _Singles:
    """Queries [count] of the batch, each over its own `longest` rows, as far as the mask says."""

    queries: Tensor
    rows: Tensor
    longest: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Several:
    """A slice of the batch over `rows`, or over itself if these are None.

    Args:
        in_products: compute it without the fused kernel, and without a mask.
    """

    queries: slice
    rows: Tensor | None
    mask: Tensor | None
    in_products: bool


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a forward pass over some spans needs to know, the same for every layer.

    Args:
        tokens: of all spans; what a batch has beyond them is padding.
        rows: where the new tokens are written [padded tokens]; the padding goes to row 0.
        positions: of the new tokens [padded tokens].
        last: the index of every span's last token in the batch [spans].
        final: attention of the last tokens alone.
    """

    tokens: int
    rows: Tensor
    positions: Tensor
    last: Tensor
    singles: tuple[_Singles, ...]
    several: tuple[_Several, ...]
    final: tuple[_Singles, ...]


class TokenCache:
    """The memory whose books `KvMemory` keeps.

    Args:
        tokens: rows, besides row 0, with which tables are padded.
    """

    def __init__(
        self, shape: ModelShape, *, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.tokens = tokens
        self._shape, self._device = shape, device
        size = (shape.layers, tokens + 1, shape.kv_heads, shape.head_dim)
        # Zeros, not empty: a masked position weighs nothing only as long as it is finite. Written
        # ones, because the system takes its time to hand out pages that are known to be zero: what
        # a replica needs is seen when it starts, not when it is busy.
        self._keys = torch.empty(size, dtype=dtype, device=device).zero_()
        self._values = torch.empty(size, dtype=dtype, device=device).zero_()
        on_cpu = device.type == "cpu"
        self._padded = few_lengths if on_cpu else int
        self._group = _CPU_GROUP if on_cpu else tokens
        self._singles_dtype = torch.float32 if on_cpu else dtype
        self._in_products = is_quicker(dtype, device) and shape.kv_heads == shape.heads

    @property
    def bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def plan(self, spans: Sequence[Span]) -> Plan:
        """How to compute the new tokens of `spans`, in this order, as one batch."""
        ends = np.cumsum([span.new for span in spans])
        single = [at for at, span in enumerate(spans) if span.new == 1]
        last = ends - 1
        singles = self._gather(spans, single, last)
        all_single = len(single) == len(spans)
        tokens = int(ends[-1])
        padding = np.zeros(self._padded(tokens) - tokens, np.int64)
        rows = np.concatenate([*(s.table[s.cached : s.end] for s in spans), padding])
        positions = np.concatenate([*(np.arange(s.cached, s.end) for s in spans), padding])
        return Plan(
            tokens=tokens,
            rows=self._tensor(rows),
            positions=self._tensor(positions),
            last=self._tensor(last),
            singles=singles,
            several=tuple(
                self._alone(span, int(end))
                for span, end in zip(spans, ends, strict=True)
                if span.new > 1
            ),
            final=singles
            if all_single
            else self._gather(spans, range(len(spans)), np.arange(len(spans))),
        )

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [tokens, kv heads, head size]."""
        self._keys[layer].index_copy_(0, rows, keys)
        self._values[layer].index_copy_(0, rows, values)

    def attend(
        self, layer: int, plan: Plan, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """What the new tokens see [padded tokens, heads, head size]; they are written already."""
        seen = torch.empty_like(queries)
        seen[plan.tokens :] = 0  # padding: what is written of it has to be finite
        for group in plan.singles:
            seen[group.queries] = self._of_group(layer, group, queries)
        for span in plan.several:
            own_keys, own_values = keys[span.queries], values[span.queries]
            if span.rows is not None:
                own_keys = self._keys[layer].index_select(0, span.rows)
                own_values = self._values[layer].index_select(0, span.rows)
            if span.in_products:
                seen[span.queries] = causal_products(queries[span.queries], own_keys, own_values)
                continue
            seen[span.queries] = self._products(
                queries[span.queries].transpose(0, 1)[None],
                own_keys.transpose(0, 1)[None],
                own_values.transpose(0, 1)[None],
                span.mask,
            )[0].transpose(0, 1)
        return seen

    def attend_last(self, layer: int, plan: Plan, queries: Tensor) -> Tensor:
        """The same for every span's last token only [spans, heads, head size]."""
        seen = torch.empty_like(queries)
        for group in plan.final:
            seen[group.queries] = self._of_group(layer, group, queries)
        return seen

    def _of_group(self, layer: int, group: _Singles, queries: Tensor) -> Tensor:
        dtype = self._singles_dtype
        shape = len(group.queries), group.longest, self._shape.kv_heads, self._shape.head_dim
        keys, values = (
            own[layer].index_select(0, group.rows).to(dtype).view(shape).transpose(1, 2)
            for own in (self._keys, self._values)
        )
        own_queries = queries[group.queries].to(dtype)[:, :, None]
        seen = self._products(own_queries, keys, values, group.mask, causal=False)
        return seen[:, :, 0].to(queries.dtype)

    def _products(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        causal: bool = True,
    ) -> Tensor:
        return scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=causal and mask is None,
            enable_gqa=self._shape.kv_heads != self._shape.heads,
        )

    def _alone(self, span: Span, end: int) -> _Several:
        queries = slice(end - span.new, end)
        in_products = self._in_products and span.new >= _MANY
        if not span.cached:
            return _Several(queries, None, None, in_products)
        rows = self._tensor(span.table[: span.end])
        if in_products:
            return _Several(queries, rows, None, True)
        columns = torch.arange(span.end, device=self._device)
        own = torch.arange(span.cached, span.end, device=self._device)
        return _Several(queries, rows, columns <= own[:, None], False)

    def _gather(
        self, spans: Sequence[Span], chosen: Sequence[int], queries: Rows
    ) -> tuple[_Singles, ...]:
        groups = []
        for members in similar([spans[at].end for at in chosen], self._group):
            own = [chosen[member] for member in members]
            lengths = np.array([spans[at].end for at in own])
            longest = int(lengths.max())
            rows = np.zeros((len(own), longest), np.int64)
            for row, at in zip(rows, own, strict=True):
                row[: spans[at].end] = spans[at].table[: spans[at].end]
            mask = None
            if lengths.min() < longest:
                mask = self._tensor(np.arange(longest) < lengths[:, None])[:, None, None]
            groups.append(
                _Singles(self._tensor(queries[own]), self._tensor(rows.ravel()), longest, mask)
            )
        return tuple(groups)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def few_lengths(length: int) -> int:
    """The next of eight lengths per octave: at most an eighth more."""
    step = 1 << max((length - 1).bit_length() - 1 - _EIGHTH, 0)
    return -(-length // step) * step


def similar(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Groups of indices in which padding at most doubles the shortest (and a few tokens more).

    Args:
        most: of a group, padding included; a longer one is alone.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        if (
            groups
            and length <= 2 * lengths[groups[-1][0]] + _SIMILAR
            and length * (len(groups[-1]) + 1) <= most
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
