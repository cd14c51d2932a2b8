"""What it takes to read the labels of a large service for retraining: time and memory.

Ten million made-up labels with features (`benchmarks.synthetic_labels`), read as `m3-router
retrain` does with its default of 200,000 at most, in a process of its own. Writes
`results/reading.json`. `READING_LABELS=100000` makes fewer.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.synthetic_labels import label_tables
from benchmarks.synthetic_records import Plan
from predictor.record_store import LABELS, RecordStore
from predictor.samples import of_labels

LABELS_MADE = int(os.environ.get("READING_LABELS", "10000000"))
DAYS = 30.0


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        store = RecordStore(folder)
        for table in label_tables(Plan(LABELS_MADE, DAYS, time.time())):
            store.append(LABELS, table)
        written_s = time.monotonic() - began
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(read, (folder,))
    figures = {"labels": LABELS_MADE, "written_s": written_s, "file_bytes": size, **found}
    print(
        f"\nreading: {LABELS_MADE:,} labels ({size / 2**30:.2f} GiB of files) in "
        f"{found['seconds']:.0f} s, {found['kept']:,} kept, {found['peak_bytes'] / 2**30:.2f} GiB "
        f"at most ({found['before_bytes'] / 2**30:.2f} before)"
    )
    print(write("reading", figures))


def read(folder: str) -> dict[str, Any]:
    """In a new process: what reading takes."""
    before = peak()
    began = time.monotonic()
    samples = of_labels(RecordStore(folder))
    return {
        "kept": len(samples),
        "seconds": time.monotonic() - began,
        "before_bytes": before,
        "peak_bytes": peak(),
    }


def peak() -> int:
    """Most bytes that this process has had in memory since it was started."""
    [line] = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024
