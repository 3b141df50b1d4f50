"""The HTTP service: `uvicorn --factory service.app:create_app`. Run as a module it prints its OpenAPI document."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from service import catalogue, db, errors, health
from service.audit import endpoints as audit
from service.audit import privacy, transparency
from service.checkpoints import endpoints as checkpoints
from service.compliance import endpoints as compliance
from service.config import Settings, get_settings
from service.datasets import endpoints as datasets
from service.middleware import BodyLimit, RequestId
from service.models import endpoints as models
from service.policies import endpoints as policies
from service.requests import endpoints as requests
from service.requests import moves
from service.telemetry import serving, tracing
from service.telemetry.http import REGISTRY, Measured
from service.workers import endpoints as workers

VERSION = "0.1.0"
ROUTERS: tuple[APIRouter, ...] = (
    requests.router,
    moves.router,
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
    health.router,
)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gc.freeze()  # else a full collection walks every imported module, and stops all requests for some 70 ms
    settings = app.state.settings
    with ExitStack() as last:
        if settings.api_metrics_port:
            last.enter_context(serving.served(REGISTRY, settings.metrics_host, settings.api_metrics_port))
        yield
    gc.unfreeze()
    if db.get_engine.cache_info().currsize:
        db.get_engine().dispose()


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
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Measured)
    app.add_middleware(RequestId)
    app.add_middleware(tracing.Traced)  # the last one is the outermost
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the Problem schema, which the routes refer to, to the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Problem"] = errors.PROBLEM_SCHEMA
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def openapi_text(app: FastAPI) -> str:
    """The OpenAPI document as it is checked in."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(openapi_text(create_app()), end="")
