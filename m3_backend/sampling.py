"""Logits → tokens, for a whole batch at once, and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from m3_backend.messages import Sampling, TokenLogprob

_COLDEST = 1e-6  # greedy in effect; colder ones would overflow


def choose(logits: Tensor, sampling: Sequence[Sampling], draws: Sequence[float]) -> list[int]:
    """The next token of every request.

    Args:
        logits: float32 [requests, vocabulary].
        draws: one uniform number in [0, 1) per request, from its own generator, so that a request's
            tokens do not depend on who else is in the batch. Not used where temperature is 0.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    rows = [row for row, own in enumerate(sampling) if own.temperature > 0]
    if rows:
        own = [sampling[row] for row in rows]
        for row, token in zip(
            rows, _sample(logits[rows], own, [draws[row] for row in rows]), strict=True
        ):
            tokens[row] = token
    return tokens


def _sample(logits: Tensor, sampling: Sequence[Sampling], draws: Sequence[float]) -> list[int]:
    """Inverse transform sampling from the nucleus: the likeliest tokens that reach top_p."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    temperatures = [max(s.temperature, _COLDEST) for s in sampling]
    probabilities = torch.softmax(logits / column(temperatures), dim=-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    nucleus = ordered.masked_fill(before >= column([s.top_p for s in sampling]), 0)
    nucleus[:, 0] = ordered[:, 0]  # never empty, however the sums are rounded
    mass = nucleus.cumsum(dim=-1)
    chosen = (mass <= column(draws) * mass[:, -1:]).sum(dim=-1, keepdim=True)
    last = (nucleus > 0).sum(dim=-1, keepdim=True) - 1
    picked: list[int] = tokens.gather(1, torch.minimum(chosen, last))[:, 0].tolist()
    return picked


def token_logprob(
    logits: Tensor, token: int, alternatives: int, spell: Callable[[int], str]
) -> TokenLogprob:
    """Log-probabilities of the model itself, before temperature and top_p.

    Args:
        logits: float32 [vocabulary].
        alternatives: how many of the likeliest tokens to list.
        spell: token id → text.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    best = logprobs.topk(alternatives)
    return TokenLogprob(
        token=spell(token),
        logprob=float(logprobs[token]),
        top=tuple(
            (spell(int(i)), float(value))
            for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ),
    )
