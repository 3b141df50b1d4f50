"""Whose rows a piece of work may see. A context variable: it follows a request through threads and streamed answers.

Nobody's set: no limit. That is how a worker, a sweep and the local caller work, who are the operator's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from service.config import get_settings

HOME = "default"
"""The project that every installation begins with. What was there before projects is its own, and its admins run the rest."""

_project: ContextVar[str | None] = ContextVar("expunge.project", default=None)


def project() -> str | None:
    """The project that is acted in; None: no limit."""
    return _project.get()


def project_or_home() -> str:
    """Where what is made now belongs."""
    return _project.get() or HOME


def tenant(project_id: str) -> str:
    """What the ledger calls a project: by its id, but for the first, whose name is a setting."""
    return get_settings().tenant if project_id == HOME else project_id


def own_tenant() -> str:
    """What the ledger calls the project that what is made now belongs to."""
    return tenant(project_or_home())


@contextmanager
def acting(project_id: str | None) -> Iterator[None]:
    """Act in a project until the block ends; None: without a limit."""
    token = _project.set(project_id)
    try:
        yield
    finally:
        _project.reset(token)
