"""The client has a method for every operation of the API, with its parameters and its bodies' types."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from service.client import Client

ROOT = Path(__file__).resolve().parents[3]
BODIES = ROOT / "service" / "client" / "bodies.py"
DESCRIPTION = json.loads((ROOT / "service" / "openapi.json").read_text())
LEFT_OUT = {
    ("HEAD", "/checkpoints/{checkpoint_id}/files/{path}"),  # the manifest says size and digest
}
ALIASES = {"from", "to"}
"""Of the filters of entries: the same as at[gte] and at[lt]."""
OF_PAGES = {"after", "limit"}
"""What lists say by themselves."""
ANSWER = {
    "data": [], "has_more": False, "version": 1, "status": "succeeded", "files": [], "evidence": [], "later": [], "name": "x",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: frozenset[str]


class Wire:
    """Where calls go; what they were."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append(Call(request.method, template(request.method, request.url.path), frozenset(request.url.params)))
        if "text/event-stream" in request.headers.get("Accept", ""):
            return httpx2.Response(204)
        return httpx2.Response(200, json=ANSWER)


def template(method: str, path: str) -> str:
    """The path as the API's description has it; of several that match, the one with the fewest holes."""
    fits = []
    for known, operations in DESCRIPTION["paths"].items():
        pattern = re.sub(r"\\\{path\\\}", ".+", re.escape(known))
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", pattern)
        if method.lower() in operations and re.fullmatch(pattern, path):
            fits.append(known)
    assert fits, f"the API has no {method} {path}"
    return str(min(fits, key=lambda known: known.count("{")))


def example(kind: Any, folder: Path) -> Any:
    """A value of an annotated type, the optional ones too."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return inner[-1]
    if origin in (types.UnionType, typing.Union):
        return example(next(k for k in inner if k is not type(None)), folder)
    if origin is list:
        return [example(inner[0], folder)]
    if origin is not None or typing.is_typeddict(kind):
        return None if origin is not None else {}
    return {str: "x", int: 3, float: 1.0, bool: True, Path: folder / "file"}[kind]


def methods(client: Client) -> Iterator[tuple[str, Any]]:
    for group, value in vars(client).items():
        if not group.startswith("_"):
            for name, method in inspect.getmembers(value, inspect.ismethod):
                if not name.startswith("_"):
                    yield f"{group}.{name}", method


def arguments(method: Any, folder: Path) -> dict[str, Any]:
    hints = typing.get_type_hints(method)
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (filters,) = typing.get_args(hints[name])
            given |= {key: example(kind, folder) for key, kind in typing.get_type_hints(filters).items()}
        elif name != "sha256":  # the wire's files have no digest that could be known
            given[name] = example(hints[name], folder)
    return given


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[Call]]]:
    """Every method, and the calls that it made."""
    folder, wire = tmp_path_factory.mktemp("client"), Wire()
    client = Client("http://expunge.test")
    client._http = httpx2.Client(base_url="http://expunge.test", transport=httpx2.MockTransport(wire))  # type: ignore[assignment]
    made = {}
    for name, method in methods(client):
        wire.calls = []
        answer = method(**arguments(method, folder))
        if isinstance(answer, Iterator):
            list(answer)
        (folder / "file").unlink(missing_ok=True)
        made[name] = (method, wire.calls)
    return made


def test_every_operation_has_a_method(called: dict[str, tuple[Any, list[Call]]]) -> None:
    known = {(m.upper(), path) for path, operations in DESCRIPTION["paths"].items() for m in operations}
    reached = {(call.method, call.path) for _, calls in called.values() for call in calls}
    assert reached == known - LEFT_OUT


def test_every_parameter_of_a_query_can_be_given(called: dict[str, tuple[Any, list[Call]]]) -> None:
    given: dict[tuple[str, str], set[str]] = {}
    for _, calls in called.values():
        for call in calls:
            given.setdefault((call.method, call.path), set()).update(call.query)
    for (method, path), names in given.items():
        described = DESCRIPTION["paths"][path][method.lower()].get("parameters", [])
        assert {p["name"] for p in described if p["in"] == "query"} - names <= ALIASES | OF_PAGES, (method, path)


def test_bodies_have_the_types_that_the_api_describes(called: dict[str, tuple[Any, list[Call]]]) -> None:
    compared = 0
    for name, (method, calls) in called.items():
        hints = typing.get_type_hints(method)
        operation = DESCRIPTION["paths"][calls[-1].path][calls[-1].method.lower()]
        sent = [k.__name__ for k in hints.values() if typing.is_typeddict(k) and k is not hints.get("return")]
        asked = _name(operation.get("requestBody", {}))
        if sent and asked:
            assert sent == [asked], name
            compared += 1
        answer = next(r for status, r in operation["responses"].items() if status.startswith("2"))
        if (told := _name(answer)) and not name.startswith("requests.follow") and "_as" not in name:
            returned = hints["return"]
            if told.startswith("Page_"):
                assert [k.__name__ for k in typing.get_args(returned)] == [told.removeprefix("Page_").rstrip("_")], name
            elif typing.is_typeddict(returned):
                assert returned.__name__ == told, name
            else:
                assert returned in (None, type(None)) or returned.__name__ in ("Iterator", "Download", "NoneType"), name
                continue
            compared += 1
    assert compared > 60


def _name(described: dict[str, Any]) -> str | None:
    schema = described.get("content", {}).get("application/json", {}).get("schema", {})
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def test_the_types_are_those_of_the_description(tmp_path: Path) -> None:
    """`make openapi` after a change writes both."""
    command = [sys.executable, "-m", "datamodel_code_generator", "--output", str(tmp_path / "bodies.py")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    written, kept = (ast.dump(ast.parse(file.read_text())) for file in (tmp_path / "bodies.py", BODIES))
    assert written == kept
