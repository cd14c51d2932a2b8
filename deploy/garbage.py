"""Python's garbage collector, kept off what does not change."""

from __future__ import annotations

import gc


def settle() -> None:
    """For a process that has loaded all it serves with.

    A full collection looks at every object there is while the interpreter stands still, in an
    ingress for a tenth of a second, and nearly all of it is for the libraries' own objects. What is
    there now is never looked at again; what comes later is collected as ever.
    """
    gc.collect()
    gc.freeze()
