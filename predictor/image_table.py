"""Image features of a whole data set, computed once and kept beside its outcomes.

With this table a predictor can be trained and judged without the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from predictor import image_features
from predictor.errors import OutcomesError
from predictor.features import image_names, image_vector
from predictor.whole_file import write_parquet

_VERSION_KEY = "m3.image_features"
_BATCH = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class ImageTable:
    """I images × F features.

    Args:
        images: I names, as the outcomes call them.
        values: I×F float32, columns as `features.image_names`.
    """

    images: tuple[str, ...]
    values: NDArray[np.float32]

    def rows(self, images: Iterable[str]) -> NDArray[np.float32]:
        """The features of these images, one row each.

        Raises:
            OutcomesError: an image that is not in the table.
        """
        index = {image: row for row, image in enumerate(self.images)}
        wanted = list(images)
        missing = sorted({image for image in wanted if image not in index})
        if missing:
            raise OutcomesError(
                f"{len(missing)} images of the outcomes have no features, such as {missing[0]!r}."
            )
        return self.values[[index[image] for image in wanted]]


def table_beside(outcomes: Path) -> Path:
    """Where the image features of an outcomes file are kept."""
    return outcomes.with_suffix(".images.parquet")


def write_image_table(path: Path, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write features by image name; the file appears complete or not at all."""
    images = sorted(vectors)
    columns = np.array([vectors[image] for image in images], np.float32)
    columns = columns.reshape(len(images), len(image_names()))
    arrays = {"image": pa.array(images, pa.string())}
    arrays |= {
        name: pa.array(columns[:, at], pa.float32()) for at, name in enumerate(image_names())
    }
    table = pa.table(arrays).replace_schema_metadata({_VERSION_KEY: image_features.VERSION})
    write_parquet(path, table)


def read_image_table(path: Path) -> ImageTable:
    """Read what `write_image_table` wrote.

    Raises:
        OutcomesError: not such a table, or features of another version.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise OutcomesError(f"{path} cannot be read as a table of image features.") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"none").decode()
    names = image_names()
    if version != image_features.VERSION or table.schema.names != ["image", *names]:
        raise OutcomesError(
            f"{path} holds image features of version {version}, this release computes "
            f"{image_features.VERSION}; compute them again from the pictures."
        )
    values = np.stack([table[name].to_numpy() for name in names], axis=1)
    return ImageTable(tuple(table["image"].to_pylist()), values)


def compute_image_table(
    folder: Path,
    images: Iterable[str],
    *,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> ImageTable:
    """Features of picture files, named by their path inside `folder`.

    Args:
        workers: processes; all cores if None.
        progress: called with (pictures done, all pictures).

    Raises:
        OutcomesError: a picture that is missing or does not decode, by name.
    """
    names = sorted(set(images))
    paths = [folder / name for name in names]
    workers = min(workers or os.cpu_count() or 1, max(len(names) // _BATCH, 1))
    vectors = []
    with ProcessPoolExecutor(workers) as pool:
        for vector in pool.map(_vector_of_file, paths, chunksize=_BATCH):
            vectors.append(vector)
            progress(len(vectors), len(paths))
    values = np.stack(vectors) if vectors else np.empty((0, len(image_names())), np.float32)
    return ImageTable(tuple(names), values)


def open_images(path: Path, images: Sequence[str], progress: Progress) -> ImageTable:
    """Features of the images of some outcomes, from a table of them or a folder of pictures."""
    if path.is_dir():
        return compute_image_table(path, images, progress=progress)
    return read_image_table(path)


def _vector_of_file(path: Path) -> NDArray[np.float32]:
    try:
        return image_vector(path.read_bytes())
    except Exception as error:
        raise OutcomesError(f"The picture {path} cannot be read.") from error
