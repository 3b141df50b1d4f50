"""What no answer may do, beyond the description: quote what was refused, or show the inside of the program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, Response

from service.app import create_app, openapi_text
from service.errors.answers import PROBLEM_URN

SHORTEST = 8
"""Characters. A shorter value turns up in any text by chance."""
INSIDE = ("Traceback (most recent call last)", 'File "/', "sqlalchemy.exc", "psycopg.errors", "sqlite3.")


@schemathesis.check
def nothing_is_echoed(ctx: CheckContext, response: Response, case: Case) -> None:
    """A 422 names the place that is wrong, never the value. The address is `instance`, which a problem has by RFC 9457."""
    if response.status_code != 422:
        return
    said = {name: value for name, value in response.json().items() if name != "instance"}
    echoed = quoted(said, [case.query, case.body, case.cookies])
    assert not echoed, f"the answer repeats what was sent: {echoed[:3]}"


@schemathesis.check
def nothing_inside_is_shown(ctx: CheckContext, response: Response, case: Case) -> None:
    """No traceback, no exception of a library."""
    if response.status_code < 400:
        return
    text = (response.content or b"").decode("utf-8", "replace")
    shown = [word for word in INSIDE if word in text]
    assert not shown, f"the answer shows {shown}"


def quoted(answer: Any, sent: Any) -> list[str]:
    """Values that were sent, no words of the API's own, and are in the answer."""
    text = json.dumps(answer, ensure_ascii=False)
    return [value for value in _texts(sent) if _as_written(value) in text and value not in _vocabulary()]


def _texts(value: Any) -> Iterator[str]:
    """Every text and large number in a value, keys as well."""
    if isinstance(value, dict):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str | int | float) and len(str(value)) >= SHORTEST:
        yield str(value)


def _as_written(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


@lru_cache(maxsize=1)
def _vocabulary() -> str:
    """A field's name is ours, though somebody sent it, and so is what every problem begins with."""
    return openapi_text(create_app()) + PROBLEM_URN
