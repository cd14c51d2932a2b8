from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc
import weakref

from deploy.garbage import settle


class Knot:
    def __init__(self):
        self.itself = self


earlier = [Knot() for _ in range(1000)]
settle()
assert gc.get_freeze_count() > 1000
assert not any(isinstance(o, Knot) for o in gc.get_objects())
later = weakref.ref(Knot())
gc.collect()
assert later() is None
"""


def test_what_is_there_is_left_alone_and_what_comes_later_is_collected() -> None:
    # In a process of its own: nothing takes this back.
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
