"""One run of Schemathesis's engine against a server, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import requests
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from tests.fuzz import checks

STATUSES = "status_code_conformance"
CHECKS = ("not_a_server_error", STATUSES, "content_type_conformance", "response_schema_conformance")
OURS = (checks.nothing_is_echoed.__name__, checks.nothing_inside_is_shown.__name__)
NOT_SIGNED_YET = 503
"""Documented where it may come; where it is not, `status_code_conformance` says so."""
NO_ANSWER = "no_answer"
PATIENCE_SECONDS = 60
STREAM_EVENTS = 2


@dataclass(frozen=True)
class Size:
    """How long, how many calls an operation and phase, from which seed."""

    seconds: int
    examples: int
    seed: int
    phases: tuple[str, ...] = ("examples", "coverage", "fuzzing", "stateful")


class Problem(NamedTuple):
    """A finding, told once however often it was found."""

    check: str
    operation: str
    status: int


@dataclass
class Findings:
    """What came of a run, or of several."""

    operations: set[str] = field(default_factory=set)
    cases: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    problems: dict[Problem, str] = field(default_factory=dict)
    """With what was said, and how to ask again."""

    def add(self, other: Findings) -> None:
        self.operations |= other.operations
        self.cases += other.cases
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.problems = {**other.problems, **self.problems}

    @property
    def counts(self) -> dict[str, int]:
        """Findings of each kind."""
        crashed = {problem[1:] for problem in self.problems if problem.status >= 500 and problem.check != STATUSES}
        errors = crashed | {problem[1:] for problem in self.problems if problem.check == NO_ANSWER}
        unsaid = {problem[1:] for problem in self.problems if problem.check == STATUSES}
        rest = [problem for problem in self.problems if problem[1:] not in errors | unsaid]
        return {"nonconforming": len(rest), "server_errors": len(errors), "undocumented_statuses": len(unsaid)}


def fuzz(url: str, headers: dict[str, str], size: Size) -> Findings:
    """Call every operation that the server describes, as whoever the headers say.

    Raises: RuntimeError: Schemathesis itself failed at something, so nothing can be said of the rest.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=SchemathesisConfig.from_dict(_config(headers, size)))
    found = Findings()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            error = event.value if isinstance(event, events.NonFatalError) else event.exception
            if not isinstance(error, requests.RequestException):
                raise RuntimeError(f"the fuzzer failed: {error}") from error
            found.problems.setdefault(Problem(NO_ANSWER, str(getattr(event, "label", "?")), 0), f"{error}")
        if isinstance(event, events.ScenarioFinished):
            _take(found, event.recorder)
    return found


def _config(headers: dict[str, str], size: Size) -> dict[str, Any]:
    """Schemathesis's configuration. Its own notion of which statuses a bad call may get is off: the description decides."""
    phases = {phase: {"enabled": phase in size.phases} for phase in ("examples", "coverage", "fuzzing", "stateful")}
    expected = {"expected-statuses": ["2xx", "3xx", "4xx", str(NOT_SIGNED_YET)]}
    chosen = {name: {"enabled": True} for name in (*CHECKS, *OURS)}
    chosen["not_a_server_error"] |= expected
    return {
        "seed": size.seed,
        "max-time": size.seconds,
        "headers": headers,
        "max-stream-events": STREAM_EVENTS,
        "request-timeout": PATIENCE_SECONDS,
        "continue-on-failure": True,
        "checks": {"enabled": False, **chosen},
        "phases": phases,
        "generation": {
            "max-examples": size.examples,
            "database": "none",
            "no-shrink": True,
            "with-security-parameters": False,
        },
    }


def _take(found: Findings, recorder: ScenarioRecorder) -> None:
    for case_id, interaction in recorder.interactions.items():
        operation = recorder.cases[case_id].value.operation.label
        found.operations.add(operation)
        found.cases += 1
        status = interaction.response.status_code if interaction.response else 0
        found.statuses[status] = found.statuses.get(status, 0) + 1
        for node in recorder.checks.get(case_id, ()):
            if node.failure_info is not None:
                said, again = node.failure_info.failure.message, node.failure_info.code_sample
                found.problems.setdefault(Problem(node.name, operation, status), f"{said}\n{again}"[:3000])
