"""How many compiled matrix products a CPU keeps.

oneDNN compiles a product for every shape that it meets and keeps a thousand of them, and torch as
many again for every thread. In a replica that is up to half a gigabyte, which fills as requests of
ever new lengths come; and whoever meets a new shape waits for its compilation, some milliseconds
where there are matrix tiles (docs/log.md, 2026-11-27). Batches are therefore padded to few lengths
(kv_cache.py), and less is kept.
"""

from __future__ import annotations

import os

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KEPT = 256


def keep_few_kernels() -> None:
    """For this process, if it has computed nothing yet, and those that it starts.

    What the operator has set stays.
    """
    for name in CAPACITIES:
        os.environ.setdefault(name, str(_KEPT))
