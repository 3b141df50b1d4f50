"""Rows as JSON, JSON lines or CSV, one at a time, however many there are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from fastapi.responses import StreamingResponse

from service.audit.leaves import rfc3339

Format = Literal["json", "csv", "jsonl"]
CSV = "text/csv"
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "csv": CSV, "jsonl": "application/jsonl"}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""A spreadsheet takes a text that begins so for a formula, and a formula may send what stands beside it elsewhere (OWASP, "CSV
injection"). An apostrophe before it makes it text."""
QUOTE = "'"
"""A text that begins with one gets another: whoever takes one off the front of each text that has one gets what was said."""


def preferred(accept: str, *, default: Format = "json") -> Format:
    """The first of our media types that an `Accept` header names; weights do not matter where nobody sends any."""
    for part in accept.lower().split(","):
        name = part.partition(";")[0].strip()
        for kind, media in MEDIA_TYPES.items():
            if name == media:
                return kind
    return default


def cell(value: Any) -> str:
    """A value in a table: text that no spreadsheet runs. Numbers stay numbers, also those with a minus."""
    match value:
        case None:
            return ""
        case bool() | int() | float():
            return json.dumps(value)
        case datetime():
            return rfc3339(value)
        case str():
            text = value
        case _:
            text = " ".join(map(str, value)) if isinstance(value, list | tuple) else json.dumps(value, sort_keys=True)
    return QUOTE + text if text.startswith((*FORMULA, QUOTE)) else text


def lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], kind: Format, *, name: str) -> Iterator[bytes]:
    """The answer's body, a piece a row."""
    if kind == "csv":
        yield _csv(columns)
        for row in rows:
            yield _csv([cell(row[column]) for column in columns])
        return
    if kind == "jsonl":
        for row in rows:
            yield _json({column: row[column] for column in columns}) + b"\n"
        return
    yield b'{"object":"list","name":%s,"columns":%s,"data":[' % (_json(name), _json(list(columns)))
    for number, row in enumerate(rows):
        yield b"," * (number > 0) + _json({column: row[column] for column in columns})
    yield b"]}"


def stream(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], kind: Format) -> StreamingResponse:
    """The same as an answer; a table or lines are a file to keep."""
    headers = {"Cache-Control": "no-store"}
    if kind != "json":
        headers["Content-Disposition"] = f'attachment; filename="{name}.{kind}"'
    return StreamingResponse(lines(columns, rows, kind, name=name), media_type=MEDIA_TYPES[kind], headers=headers)


def _csv(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(f"expected a JSON value, got {type(value).__name__}")
