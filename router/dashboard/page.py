"""Routes of the built-in page.

The page itself holds nothing but its own code, so it is there without a key, as are the example
pictures; whatever it shows of the service it asks the API for, with the key of whoever looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from m3_backend.errors import ServiceError
from router.dashboard.examples import Examples, read_examples
from router.dashboard.files import SECURITY, PageFile, read_files
from router.dashboard.looks import VIEW_NAMES, Known, Looked, read_look
from router.drift import DriftWatch
from router.errors import Code
from router.service import RoutingService

Records = Callable[[Looked], Awaitable[dict[str, Any]]]
STATIC = Path(__file__).parent / "static"
PAGE = "index.html"
FILES, EXAMPLES = "/dashboard/static/{name:path}", "/dashboard/examples"
PICTURES = "/dashboard/examples/{name}"
VIEW = "/dashboard/views/{view}"  # of everybody's requests
VIEW_TIMEOUT_S = 10.0
# For everybody, with or without a key.
OPEN_PATHS = frozenset({"/", "/dashboard", FILES, EXAMPLES, PICTURES})


class Setup(BaseModel):
    """Answer of `GET /dashboard/setup`: what the page has to know about the service.

    Args:
        grid_side: patches per side of the vision tower's grid.
        tiled: a picture becomes several grids, so its tokens are not its scale.
        max_regret: the service's own bound.
        regret_bounds: those that a price is certified for; none without a predictor.
        max_image_bytes: of one encoded picture.
        views: what there is beside the playground; nothing where no records are kept.
    """

    model: str
    scales: list[int]
    grid_side: int
    tiled: bool
    predictor: str | None
    max_regret: float
    regret_bounds: list[float]
    max_image_bytes: int
    views: list[str]


def add_page(
    app: FastAPI,
    service: RoutingService,
    examples: Path | None,
    records: Records | None,
    drift: DriftWatch | None,
) -> None:
    """Adds the page.

    Args:
        examples: folder of the example pictures; None where there are none.
        records: shows a view of the records; None where none are kept.
        drift: watches the traffic; None where nobody does.
    """
    files = read_files(STATIC)
    shown = read_examples(examples)
    page = files[PAGE]

    @app.get("/", include_in_schema=False)
    @app.get("/dashboard", include_in_schema=False)
    async def dashboard(request: Request) -> Response:
        """The page."""
        return page.answer(request)

    @app.get(FILES, include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        """What the page is made of."""
        return _found(files.get(name)).answer(request)

    @app.get("/dashboard/setup", include_in_schema=False)
    async def setup() -> Response:
        """What the page has to know about the service."""
        return _json(await _setup(service, [] if records is None else list(VIEW_NAMES)))

    @app.get(VIEW, include_in_schema=False)
    async def view(request: Request, view: str) -> Response:
        """One view of the records."""
        name = next((name for name in VIEW_NAMES if name == view), None)
        if records is None or name is None:
            raise HTTPException(404)
        known = await _known(service, drift)
        looked = read_look(name, request.query_params, known)
        try:
            async with asyncio.timeout(VIEW_TIMEOUT_S):
                shown = await records(looked)
        except TimeoutError:
            raise ServiceError(
                "The records cannot be shown now; try again.",
                status=503,
                code=Code.RECORDS_UNAVAILABLE,
                retry_after_s=VIEW_TIMEOUT_S,
            ) from None
        return JSONResponse(shown, headers={**SECURITY, "cache-control": "no-store"})

    _add_examples(app, shown)


def _add_examples(app: FastAPI, shown: Examples) -> None:
    @app.get(EXAMPLES, include_in_schema=False)
    async def examples() -> Response:
        """Example pictures, and what may be asked about them."""
        return _json(shown.listed)

    @app.get(PICTURES, include_in_schema=False)
    async def picture(request: Request, name: str) -> Response:
        """An example picture."""
        return _found(shown.pictures.get(name)).answer(request)


async def _known(service: RoutingService, drift: DriftWatch | None) -> Known:
    return Known(
        (await service.info()).costs.prefill_token_ms,
        service.config.max_regret,
        service.certified_prices,
        service.predictor_version,
        service.predictor_target,
        service.config.shadow.uniform_share,
        None if drift is None else drift.state,
        service.config.drift.warn_at,
    )


async def _setup(service: RoutingService, views: list[str]) -> Setup:
    info = await service.info()
    return Setup(
        model=info.name,
        scales=list(info.ladder.scales),
        grid_side=info.ladder.grid_side,
        tiled=info.tiling is not None,
        predictor=service.predictor_version,
        max_regret=service.config.max_regret,
        regret_bounds=list(service.regret_bounds),
        max_image_bytes=service.config.images.max_bytes,
        views=views,
    )


def _found(file: PageFile | None) -> PageFile:
    if file is None:
        raise HTTPException(404)
    return file


def _json(body: BaseModel) -> Response:
    fields = {**SECURITY, "cache-control": "no-store"}
    return Response(body.model_dump_json(), media_type="application/json", headers=fields)
