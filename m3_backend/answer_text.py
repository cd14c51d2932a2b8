"""Generated tokens → text that can be sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

SEPARATOR = " "  # what the template puts between the assistant's role and its answer
_INCOMPLETE = "\ufffd"  # what a decoder makes of the first bytes of a character
_LONGEST_CHARACTER = 4  # bytes in UTF-8, and a token is at least one byte


class AnswerText:
    """The text of one growing answer.

    Tokens can be parts of characters, and text that may become a stop string must wait until it is
    clear that it does not. `push` gives what is certain; `finish` what was still waiting. The space
    between the template and the answer, which some tokenizers give to the first word, is left out.

    Args:
        decode: token ids → text, as the tokenizer does it.
        stop: the answer ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._context = 0  # decoding starts here: a token's text can depend on the one before it
        self._decoded = 0  # ids before this one are in `_pending` or sent
        self._pending = ""
        self._begun = False
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that the token makes certain; empty while a character or stop string is open."""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._decoded])
        now = self._decode(self._ids[self._context :])
        open_tokens = len(self._ids) - self._decoded
        incomplete = now.endswith(_INCOMPLETE) and open_tokens < _LONGEST_CHARACTER
        if incomplete or len(now) <= len(before):
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        self._append(now[len(before) :])
        return self._certain()

    def finish(self) -> str:
        """What is left when nothing more comes. The beginning of a character is dropped."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context : self._decoded])
        now = self._decode(self._ids[self._context :]).rstrip(_INCOMPLETE)
        self._append(now[len(before) :])
        certain = self._certain()
        rest = "" if self.stopped else self._pending
        self._pending = ""
        return certain + rest

    def _append(self, text: str) -> None:
        self._pending += text if self._begun else text.removeprefix(SEPARATOR)
        self._begun = self._begun or bool(text)

    def _certain(self) -> str:
        found = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._pending) - self._open_stop()
        certain, self._pending = self._pending[:cut], self._pending[cut:]
        return certain

    def _open_stop(self) -> int:
        """Length of the longest end of the pending text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stop):
                return length
        return 0
