"""Progress has a total that grows where more is asked than was foreseen, and a pace that counts from the first step."""

from __future__ import annotations

from pathlib import Path

from worker.contract import Event
from worker.engine.events import Events, Progress


def test_total_grows_with_what_is_asked_and_the_rest_is_estimated_from_the_pace(tmp_path: Path) -> None:
    now = [100.0]
    events = Events(tmp_path / "events.jsonl", "verifying", speaks=True, clock=lambda: now[0])
    progress = Progress(events, "image", clock=lambda: now[0])
    progress.foresee(4)
    now[0] = 150.0  # fifty seconds of something else, before the first step
    progress.advance(0)
    now[0] = 160.0
    progress.advance(2)  # 2 in 10 s
    progress.expect(2)
    now[0] = 170.0
    progress.advance(4)  # 6 of 6
    now[0] = 180.0
    progress.advance(1)  # nobody foresaw this one
    lines = [Event.model_validate_json(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e.completed, e.total, e.unit) for e in lines] == [
        (0, 4, "image"),
        (2, 4, "image"),
        (6, 6, "image"),
        (7, 7, "image"),
    ]
    assert [e.estimated_remaining_seconds for e in lines] == [None, 10.0, 0.0, 0.0]
