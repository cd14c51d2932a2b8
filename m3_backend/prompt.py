"""Conversation → token ids with places for images, in the `vicuna_v1` template M3 was trained with.

    SYSTEM USER: <image>
    QUESTION ASSISTANT: ANSWER</s>USER: QUESTION ASSISTANT:

A turn's images come before its text, each followed by a line break, as in the reference. Text
between two images is tokenised on its own and the beginning-of-sequence token stands once, first.
Only the template makes special tokens: `</s>` or `<image>` in somebody's text stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from m3_backend.errors import InvalidRequestError
from m3_backend.messages import ImageSlot, Turn

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

END_OF_TURN = object()  # the end-of-sequence token, as opposed to text that spells it

Part = str | ImageSlot | object


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """`vicuna_v1` with its system prompt; an empty one leaves the prompt to begin with `USER: `."""

    system: str = VICUNA_SYSTEM

    def render(self, turns: Sequence[Turn]) -> tuple[Part, ...]:
        """The prompt as text, image slots and END_OF_TURN marks; neighbouring texts are joined.

        A system turn replaces the template's system prompt. Turns of one role in a row become one.

        Raises:
            InvalidRequestError: no question at the end, or an image outside a user turn.
        """
        spoken = [turn for turn in turns if turn.role != "system"]
        if not spoken or spoken[-1].role != "user":
            raise InvalidRequestError("The conversation must end with a user message.")
        for turn in turns:
            if turn.role != "user" and any(isinstance(part, ImageSlot) for part in turn.content):
                raise InvalidRequestError("Images may stand in user messages only.")
        own_system = [_text(turn) for turn in turns if turn.role == "system"]
        system = "\n".join(own_system) if own_system else self.system

        parts: list[Part] = [f"{system} "] if system else []
        for turn in _merged(spoken):
            if turn.role == "assistant":
                parts += [f"ASSISTANT: {_text(turn)}", END_OF_TURN]
                continue
            parts.append("USER: ")
            for part in turn.content:
                if isinstance(part, ImageSlot):
                    parts += [part, "\n"]
            parts.append(f"{_text(turn)} ")
        parts.append("ASSISTANT:")
        return tuple(_joined(parts))


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids around images: runs[0], images[0], runs[1], …, images[-1], runs[-1].

    Args:
        runs: one more than there are images; any may be empty.
        images: which image of the request stands in each gap.
    """

    runs: tuple[tuple[int, ...], ...]
    images: tuple[int, ...] = ()

    @classmethod
    def from_marked(cls, ids: Iterable[int], mark: int = -200) -> Prompt:
        """From ids in which `mark` stands for the next image (-200 in LLaVA's own code)."""
        runs: list[list[int]] = [[]]
        for token in ids:
            if token == mark:
                runs.append([])
            else:
                runs[-1].append(token)
        return cls(tuple(tuple(run) for run in runs), tuple(range(len(runs) - 1)))

    def length(self, image_tokens: Sequence[int]) -> int:
        """Tokens of the whole prompt, given the tokens of every image of the request."""
        return sum(map(len, self.runs)) + sum(image_tokens[index] for index in self.images)


class Tokenizer:
    """A checkpoint's tokenizer: what serving needs, closed to injected specials, thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        # A copy of the Rust tokenizer, set up once: transformers' wrapper changes settings on every
        # call, which fails when another thread is using them.
        self._backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int = tokenizer.eos_token_id
        added = self._backend.get_added_tokens_decoder()
        self._special = {token for token, entry in added.items() if entry.special}
        self._special.update(tokenizer.all_special_ids)
        self._longest = max(map(len, self._backend.get_vocab()))

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: the spelling of a special token is cut up like any other text."""
        ids = self._plain(text)
        if self._special.isdisjoint(ids):
            return ids
        # A vocabulary whose merges themselves lead to a special token: spell that token out.
        spelled: list[int] = []
        for token in ids:
            if token in self._special:
                letters = self._backend.id_to_token(token) or ""
                spelled += [i for c in letters for i in self._plain(c) if i not in self._special]
            else:
                spelled.append(token)
        return spelled

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens; special ones are left out, incomplete characters are U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> str:
        """One token by itself, special ones by name."""
        text: str = self._backend.decode([token], skip_special_tokens=False)
        return text

    def fewest_tokens(self, parts: Sequence[Part]) -> int:
        """What `parts` take at least, without tokenising: as if all were the longest token."""
        return sum(len(part) for part in parts if isinstance(part, str)) // self._longest

    def prompt(self, parts: Sequence[Part]) -> Prompt:
        """Tokenise what `PromptTemplate.render` gives."""
        runs: list[list[int]] = [[] if self.bos is None else [self.bos]]
        images: list[int] = []
        for part in parts:
            if isinstance(part, str):
                runs[-1] += self.encode(part)
            elif isinstance(part, ImageSlot):
                images.append(part.index)
                runs.append([])
            else:
                runs[-1].append(self.eos)
        return Prompt(tuple(tuple(run) for run in runs), tuple(images))


def _text(turn: Turn) -> str:
    return "\n".join(part for part in turn.content if isinstance(part, str))


def _merged(turns: Iterable[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1] = Turn(turn.role, merged[-1].content + turn.content)
        else:
            merged.append(turn)
    return merged


def _joined(parts: Iterable[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
