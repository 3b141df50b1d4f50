"""The HTTP service: `uvicorn --factory service.app:create_app`. Run as a module it prints its OpenAPI document."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service import catalogue, db, errors, health
from service.access import described, gate
from service.access import endpoints as access
from service.audit import endpoints as audit
from service.audit import privacy, transparency
from service.checkpoints import endpoints as checkpoints
from service.compliance import endpoints as compliance
from service.config import Settings, get_settings
from service.datasets import endpoints as datasets
from service.middleware import BodyLimit, RequestId, SecurityHeaders
from service.models import endpoints as models
from service.policies import endpoints as policies
from service.requests import batches, feed, moves
from service.requests import endpoints as requests
from service.requests.tailer import Tailer
from service.telemetry import serving, tracing
from service.telemetry.http import REGISTRY, Measured
from service.webhooks import endpoints as webhooks
from service.workers import endpoints as workers

log = logging.getLogger("expunge.app")

VERSION = "0.1.0"
ROUTERS: tuple[APIRouter, ...] = (
    requests.router,
    moves.router,
    batches.router,
    models.router,
    datasets.router,
    checkpoints.router,
    audit.router,
    transparency.router,
    privacy.router,
    compliance.router,
    catalogue.router,
    policies.router,
    workers.router,
    feed.router,
    webhooks.router,
    access.router,
    health.router,
)
DENIALS_EVERY_SECONDS = 60.0


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    catalogue.of_schema({})  # imported now, and not by the first POST, which holds a lock meanwhile: seconds on a busy host
    ours = gc.get_freeze_count() == 0  # who started us may have done so
    if ours:
        gc.freeze()  # else a full collection walks every imported module, and stops all requests for some 70 ms
    settings = app.state.settings
    flushing = asyncio.create_task(_flush_denials(app)) if settings.auth == "required" else None
    with ExitStack() as last:
        if settings.api_metrics_port and serving.TOGETHER not in os.environ:  # else who started us answers for all
            last.enter_context(serving.served(REGISTRY, settings.metrics_host, settings.api_metrics_port))
        yield
    if flushing is not None:
        flushing.cancel()
        await run_in_threadpool(app.state.denials.flush, at_once=True)
    app.state.authenticator.close()
    await app.state.limits.close()
    if ours:
        gc.unfreeze()
    if db.get_engine.cache_info().currsize:
        db.get_engine().dispose()


async def _flush_denials(app: FastAPI) -> None:
    """What was counted is written when its window has ended, though nobody is refused any more."""
    while True:
        await asyncio.sleep(DENIALS_EVERY_SECONDS)
        try:
            await run_in_threadpool(app.state.denials.flush)
        except (SQLAlchemyError, errors.Unavailable):  # the counts are kept for the next time
            log.warning("denials.not_written", exc_info=True)


def routes() -> Iterator[APIRoute]:
    """Every route of the API but its documents, in the order in which they are asked."""
    for router in ROUTERS:
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def create_app(settings: Settings | None = None) -> FastAPI:
    """The whole application. It connects to nothing before its first request.

    Args:
        settings: limits, store and policy; the database is the process's own (`service.db.get_engine`).
    """
    settings = settings or get_settings()
    app = FastAPIOffline(  # /docs with its scripts from here: many of these services see no internet
        title="Expunge",
        version=VERSION,
        summary="Makes image models forget, verifies it, signs it, and keeps the record",
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
        responses=errors.problems(errors.Unprocessable, errors.ServiceError),
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.tailer = Tailer()
    gate.install(app, routes(), settings)  # innermost: what is outside of it needs no caller
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Measured)
    app.add_middleware(RequestId)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(tracing.Traced)  # the last one is the outermost
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    _complete_description(app)
    return app


def _complete_description(app: FastAPI) -> None:
    """Add to the OpenAPI document the Problem schema, which the routes refer to, and what each route asks of its caller."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            document["components"]["schemas"]["Problem"] = errors.PROBLEM_SCHEMA
            errors.add_body_refusals(document)
            described.add_access(document, routes())
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def openapi_text(app: FastAPI) -> str:
    """The OpenAPI document as it is checked in."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(openapi_text(create_app()), end="")
