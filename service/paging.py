"""Keyset pages: a cursor names the last row seen, so a page costs the same however deep, and new rows shift nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Request, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Integer, Select, String, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.types import TypeEngine

from service.db import UtcDateTime
from service.errors import InvalidCursor
from service.values import LARGEST_INT, plain_text

MOST = 100
T = TypeVar("T")
R = TypeVar("R")
Order = Literal["asc", "desc"]


def _aware(value: Any) -> Any:
    """RFC 3339 in a query string: its `+` arrives as a blank. Numbers are not times here."""
    if not isinstance(value, str) or not value[:4].isdigit() or "-" not in value:
        raise ValueError("expected an RFC 3339 time with its offset")
    return value.replace(" ", "+") if "T" in value.upper() else value


def _with_offset(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("expected an RFC 3339 time with its offset")
    try:
        value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time that UTC has, too: its years are 1 to 9999") from error
    return value


Moment = Annotated[datetime, BeforeValidator(_aware), AfterValidator(_with_offset)]


class PageQuery(BaseModel):
    """What every list takes. Unknown parameters are refused: a misspelt filter must not return everything."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=MOST, description="items on the page")
    after: str | None = Field(default=None, max_length=512, description="`next_cursor` of the page before")


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    next_cursor: str | None = None


class Slice(BaseModel, Generic[R]):
    """Rows of one page, and the cursor to the next."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    rows: list[R]
    next_cursor: str | None


def fetch_page(
    session: OrmSession,
    statement: Select[Any],
    keys: Sequence[InstrumentedAttribute[Any]],
    query: PageQuery,
    order: Order,
) -> Slice[Any]:
    """One page of `statement` in the order of `keys`, which together are unique and each int, str or datetime.

    Raises:
        InvalidCursor: `query.after` was not made by a list with these keys.
    """
    if query.after is not None:
        types = [key.type for key in keys]
        last = tuple_(*(literal(v, t) for v, t in zip(decode_cursor(query.after, keys), types, strict=True)))
        statement = statement.where(tuple_(*keys) > last if order == "asc" else tuple_(*keys) < last)
    ordered = statement.order_by(*(k.asc() if order == "asc" else k.desc() for k in keys)).limit(query.limit + 1)
    rows = list(session.scalars(ordered).all())
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    return Slice(rows=rows, next_cursor=_encode([getattr(rows[-1], k.key) for k in keys]) if more else None)


def page(found: Slice[R], read: Callable[[R], T], request: Request, response: Response) -> dict[str, Any]:
    """The page's body; says the next page's address in `Link` too."""
    if found.next_cursor is not None:
        following = request.url.include_query_params(after=found.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return {
        "object": "list",
        "data": [read(row) for row in found.rows],
        "has_more": found.next_cursor is not None,
        "next_cursor": found.next_cursor,
    }


def _encode(values: Sequence[Any]) -> str:
    plain = [v.isoformat() if isinstance(v, datetime) else v for v in values]
    return base64.urlsafe_b64encode(json.dumps(plain, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, keys: Sequence[InstrumentedAttribute[Any]]) -> list[Any]:
    """The values in a cursor. Raises: InvalidCursor."""
    try:
        values = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(values, list):
            raise ValueError("not a list")
        return [_value(v, key.type) for v, key in zip(values, keys, strict=True)]
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InvalidCursor(pointer="query:after") from error


def _value(value: Any, column: TypeEngine[Any]) -> datetime | str | int:
    """A cursor's value, held to the column's type."""
    if isinstance(column, UtcDateTime) and isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)  # here, where a time that UTC does not have is said to be none of ours
    elif isinstance(column, String) and isinstance(value, str):
        return plain_text(value)
    elif isinstance(column, Integer) and type(value) is int and abs(value) <= LARGEST_INT:
        return value
    raise ValueError("of another type")
