"""Questions about pictures: from files of the user's, or drawn by the training worlds."""

from predictor.datasets.formats import FORMATS
from predictor.datasets.pictures import check_pictures
from predictor.datasets.reading import Dataset, read_dataset, read_jsonl
from predictor.datasets.rows import Problem, Row
from predictor.datasets.worlds import world_rows

__all__ = [
    "FORMATS",
    "Dataset",
    "Problem",
    "Row",
    "check_pictures",
    "read_dataset",
    "read_jsonl",
    "world_rows",
]
