"""The catalogue of errors, printed: `python -m service.errors.reference > docs/reference/errors.md`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

from service.errors.kinds import ServiceError


def kinds() -> list[type[ServiceError]]:
    """Every kind that an answer may have, by status and code."""
    importlib.import_module("service.app")  # and with it every module that defines some
    ours = {kind.code: kind for kind in _below(ServiceError) if kind.__module__.startswith("service.")}
    return sorted(ours.values(), key=lambda kind: (kind.status, kind.code))


def _below(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for below in kind.__subclasses__():
        yield from _below(below)
    yield kind  # after what is below it: of two with one code, the general one stays


def reference() -> str:
    """The catalogue, as `docs/reference/errors.md` holds it."""
    rows = [
        f"| {kind.status} | `{kind.code}` | {f'after {kind.retry_after} s' if kind.retryable else 'no'} | {_meaning(kind)} |"
        for kind in kinds()
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            "<!-- printed by `python -m service.errors.reference`; do not edit -->",
            "",
            "Every error is RFC 9457 `application/problem+json`: `type` (`urn:expunge:problem:` and the code), `title`,",
            "`status`, `detail`, `instance`, `code`, `retryable`, and for some `errors` with a pointer each. `code` is stable;",
            "`detail` is for people and may change. No error repeats what the client sent. The answer's `X-Request-Id` finds",
            "its log lines.",
            "",
            "An error that is worth another try has `Retry-After`. To create a request again is safe with its",
            "`Idempotency-Key`.",
            "",
            "| status | code | again? | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _meaning(kind: type[ServiceError]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or kind.title).split())


if __name__ == "__main__":
    print(reference(), end="")
