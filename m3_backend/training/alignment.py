"""Makes what the language model is shown speak the language of its words.

To answer "is there a red star?" a token of the image has to be compared with two words. As long as
nothing ties how red looks to how "red" reads, that comparison is found by chance, if at all:
existence stayed at a coin's toss through 100,000 pictures. So the projector also learns from the
dense labels: the direction of a patch's token shall tell, among the words for things, colours and
rows, those that name what stands there, and between "left" and "right", "top" and "bottom", "above"
and "below" how far it lies to which side. Tokens of coarser scales are means of these and stay sums
of words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from m3_backend.scales import M3_GRID_SIDE
from m3_backend.training.worlds.canvas import CLASSES, COLOUR, ROWS

_SHARPNESS = 12.0  # of the softmax over cosines
_ACROSS, _DOWN = (("left", "right"),), (("top", "bottom"), ("above", "below"))
_UNNAMED = -1


class WordAlignment(nn.Module):
    """The loss that ties image tokens to words. It has no weights of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        vocabularies = {"classes": CLASSES, "colours": tuple(COLOUR), "rows": ROWS}
        for kind, names in vocabularies.items():
            ids = [_token_of(name, tokenizer) for name in names]
            words = sorted(set(ids) - {_UNNAMED})
            at = torch.tensor([words.index(i) if i != _UNNAMED else _UNNAMED for i in ids])
            # One more label than there are names: colours have one for what cannot be named.
            at = F.pad(at, (0, 1), value=_UNNAMED)
            self.register_buffer(f"{kind}_words", torch.tensor(words), persistent=False)
            self.register_buffer(f"{kind}_at", at, persistent=False)
        for axis, pairs in {"across": _ACROSS, "down": _DOWN}.items():
            ends = [[_token_of(end, tokenizer) for end in pair] for pair in pairs]
            self.register_buffer(f"{axis}_words", torch.tensor(ends), persistent=False)

    def forward(
        self,
        tokens: Tensor,
        embeddings: Tensor,
        labels: dict[str, Tensor],
        corner: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Mean cross-entropy of naming what stands at the points of every patch, and where.

        Args:
            tokens: [batch, patches, width] projected, not pooled.
            embeddings: [vocabulary, width] of the language model.
            labels: "classes", "colours" and "rows", uint8 [batch, patches, points] each.
            corner: row and column, in patches of the whole view, of the first patch.
        """
        directions = F.normalize(tokens.float(), dim=-1)
        losses = []
        for kind, points in labels.items():
            words = F.normalize(embeddings[self.get_buffer(f"{kind}_words")].float(), dim=-1)
            named = self.get_buffer(f"{kind}_at")[points.long()]
            told = (_SHARPNESS * directions @ words.T).log_softmax(-1)
            right = told.gather(-1, named.clamp(min=0))
            known = named != _UNNAMED
            losses.append(-right.where(known, 0.0).sum() / known.sum().clamp(min=1))
        side = round(tokens.shape[1] ** 0.5)
        steps = (torch.arange(side, device=tokens.device) + 0.5) / M3_GRID_SIDE
        down, across = (steps + start / M3_GRID_SIDE for start in corner)
        losses.append(self._lying(directions, embeddings, "down", down.repeat_interleave(side)))
        losses.append(self._lying(directions, embeddings, "across", across.repeat(side)))
        return torch.stack(losses).sum()

    def _lying(self, directions: Tensor, embeddings: Tensor, axis: str, at: Tensor) -> Tensor:
        """Cross-entropy of telling, by each pair of words, how far along an axis patches lie.

        Args:
            at: 0 at the end that a pair's first word names to 1 at the other, [patches].
        """
        words = F.normalize(embeddings[self.get_buffer(f"{axis}_words")].float(), dim=-1)
        told = torch.einsum("bpw,kew->bpke", _SHARPNESS * directions, words).log_softmax(-1)
        wanted = torch.stack((1 - at, at), dim=-1)[:, None]
        return -(told * wanted).sum(-1).mean()


def _token_of(name: str, tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token by which questions and answers name a label; _UNNAMED where none does."""
    kind, _, glyph = name.partition(" ")
    if kind in ("printed", "handwritten"):
        ids = tokenizer.encode(glyph, add_special_tokens=False)
    elif kind in ("nothing", "row", "rule", "clutter"):
        return _UNNAMED
    else:
        ids = tokenizer.encode(f" {name}", add_special_tokens=False)
    assert len(ids) == 1, name
    return int(ids[0])
