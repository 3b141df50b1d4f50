"""The catalogue of errors is the code's, and leaves none out."""

from __future__ import annotations

import ast
from pathlib import Path

from service.errors import ServiceError
from service.errors.reference import kinds, reference

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference" / "errors.md"


def test_the_reference_is_what_the_kinds_say() -> None:
    """`python -m service.errors.reference > docs/reference/errors.md` after a change."""
    assert REFERENCE.read_text() == reference()


def test_no_kind_is_left_out() -> None:
    """Whatever class of the service has a code of its own: an answer may have it."""
    listed = {kind.code for kind in kinds()}
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and (code := _code(node)) is not None:
                assert code in listed, f"{path.name}: {node.name}"


def _code(node: ast.ClassDef) -> str | None:
    """The `code` that a class body sets beside a `title`, as kinds of errors do."""
    for line in node.body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Tuple):
            continue
        names = [t.id for t in line.targets[0].elts if isinstance(t, ast.Name)]
        if "code" in names and "title" in names and isinstance(line.value, ast.Tuple):
            value = line.value.elts[names.index("code")]
            return str(value.value) if isinstance(value, ast.Constant) else None
    return None


def test_every_kind_says_what_it_means() -> None:
    assert len(kinds()) > 40
    assert [kind.code for kind in kinds() if not kind.__doc__ or not kind.title] == []
    assert ServiceError in kinds()
