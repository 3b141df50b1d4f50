"""Each of the fifteen once, small, on one stack: `make faults` has them on both, in full. Most of their time they wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.stories import STORIES
from tests.faults import running
from tests.faults.scenarios import SCENARIOS, SHORT, Scenario
from tests.faults.stack import Kind, Servers, Stack, opened

HERE: dict[str, Kind] = {"bells_lost_again_and_again": "production", "frozen_past_its_lease": "production"}
"""Where a short one is worth more; else on the embedded stack if it can be there."""
SOCKET_SECONDS = "3"


def kind_of(one: Scenario) -> Kind:
    return HERE.get(one.name, one.kinds[0])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("faults"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def stacks(servers: Servers, request: pytest.FixtureRequest) -> Iterator[Stack]:
    with opened(request.param, servers, FAULTS_SOCKET=SOCKET_SECONDS) as stack:
        yield stack


ORDERED = sorted(SCENARIOS, key=kind_of)


@pytest.mark.parametrize(
    ("stacks", "one"), [(kind_of(s), s) for s in ORDERED], ids=[s.name for s in ORDERED], indirect=["stacks"], scope="module"
)
def test_nothing_is_lost_doubled_or_stuck(stacks: Stack, one: Scenario) -> None:
    running.once(stacks, one, seed=0, size=SHORT)


def test_the_fifteen_are_there() -> None:
    assert sorted({s.number for s in SCENARIOS}) == list(range(1, 16))


def test_the_ten_stories_are_there() -> None:
    assert [story.number for story in STORIES] == list(range(1, 11))  # the import has looked for the files that tell them
