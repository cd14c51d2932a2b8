"""The predictor's own errors, in the project's one tree.

ServiceError
├── ArtifactError  500  invalid_artifact: a predictor folder that must not be served
├── OutcomesError  500  invalid_outcomes: a table that cannot be trained or evaluated on
└── RecordsError   500  invalid_records: records of requests that cannot be read or kept
"""

from __future__ import annotations

from m3_backend.errors import ServiceError


class ArtifactError(ServiceError):
    default_code = "invalid_artifact"


class OutcomesError(ServiceError):
    default_code = "invalid_outcomes"


class RecordsError(ServiceError):
    default_code = "invalid_records"
