"""POST /unlearn-requests: what is accepted, what is refused, and that doing it twice is doing it once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service import db
from service.tables import LedgerEntry, RequestEvent, UnlearnRequest
from tests.support import ask, code_of, move, publish, register


def _count(table: type) -> int:
    with db.reading() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def test_a_request_is_recorded_with_its_entry_and_its_event(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    response = ask(client, model, "three", reason="art. 17", external_id="T-1", metadata={"team": "v", "n": 0.5})
    assert response.status_code == 202, response.text
    body = response.json()
    assert response.headers["location"] == f"/unlearn-requests/{body['id']}"
    assert response.headers["retry-after"].isdigit()
    assert response.headers["etag"].startswith('"1-')
    assert body["status"] == "queued"
    assert body["forget"] == {"classes": [3], "class_names": ["three"], "samples": {"count": 0, "ids": []}}
    assert body["method"] == "sfron"
    assert body["params"] == {"iterations": 50, "alpha": 1.0, "optimizer": "dual"}  # the defaults are made explicit
    assert 0 <= body["seed"] < 2**31
    assert body["policy"]["name"] == "test-v1"
    assert client.get(response.headers["location"]).json() == body
    entries = client.get("/audit/entries", params={"request_id": body["id"]}).json()["data"]
    assert [e["action"] for e in entries] == ["unlearning.request.received"]
    events = client.get(f"/unlearn-requests/{body['id']}/events").json()["data"]
    assert [e["type"] for e in events] == ["unlearning_request.created"]


def test_spellings_of_one_class_are_one_class(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    assert ask(client, model, 3, "3", "three", " three ").json()["forget"]["classes"] == [3]


def test_an_unknown_model_is_404(client: TestClient) -> None:
    response = ask(client, {"id": "mdl_" + "0" * 32}, 1)
    assert (response.status_code, code_of(response)) == (404, "model_not_found")


def test_an_unknown_class_is_422_and_names_the_known_ones(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    for unknown in ("nine", 5, -1, "5", "-1", "03", "٣", ""):
        response = ask(client, model, unknown)
        assert (response.status_code, code_of(response)) == (422, "unknown_class")
        assert response.json()["known_classes"] == ["zero", "one", "two", "three", "four"]
    assert code_of(ask(client, model, True)) == "validation_failed"  # a bool is no index


def test_no_class_is_422(client: TestClient, tmp_path: Path) -> None:
    response = ask(client, register(client, tmp_path))
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


def test_all_classes_are_422(client: TestClient, tmp_path: Path) -> None:
    response = ask(client, register(client, tmp_path), 0, 1, 2, 3, 4)
    assert (response.status_code, code_of(response)) == (422, "nothing_to_retain")


def test_all_classes_by_way_of_pending_ones_are_422(client: TestClient, tmp_path: Path) -> None:
    """Forgotten + pending + asked: the last class cannot go, however the wish is cut up."""
    model = register(client, tmp_path)
    first = ask(client, model, 0, 1).json()
    publish(model, first["id"], {"w.safetensors": b"x"}, tmp_path)
    assert ask(client, model, 2).status_code == 202
    assert code_of(ask(client, model, 3, 4)) == "nothing_to_retain"  # 0 1 gone, 2 pending, 3 4 asked: none of five is left
    assert ask(client, model, 3).status_code == 202


def test_a_class_already_forgotten_is_422(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1).json()
    publish(model, first["id"], {"w.safetensors": b"x"}, tmp_path)
    response = ask(client, model, 0, 1)
    assert (response.status_code, code_of(response)) == (422, "already_forgotten")
    after = ask(client, model, 0).json()
    assert after["cumulative_forget"] == {"classes": [0, 1], "class_names": ["zero", "one"], "samples": {"count": 0}}


def test_a_class_already_pending_is_409_and_names_the_request(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1, 2).json()
    response = ask(client, model, "two", 3)
    assert (response.status_code, code_of(response)) == (409, "duplicate_request")
    assert response.json()["request_id"] == first["id"]


def test_a_class_whose_request_has_ended_may_be_asked_for_again(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1).json()
    move(first["id"], "running", "failed")
    assert ask(client, model, 1).status_code == 202


def test_a_busy_model_queues_by_default_and_in_order(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    made = [ask(client, model, k).json() for k in range(4)]
    times = [m["created_at"] for m in made]
    assert times == sorted(set(times))  # strictly later each time, even within one tick of SQLite's clock


def test_on_conflict_reject_is_409_on_a_busy_model(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    assert ask(client, model, 1, on_conflict="reject").status_code == 202
    response = ask(client, model, 2, on_conflict="reject")
    assert (response.status_code, code_of(response)) == (409, "lineage_busy")


def test_on_conflict_use_existing_gives_the_request_that_covers(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1, 2).json()
    again = ask(client, model, 2, on_conflict="use_existing")
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert code_of(ask(client, model, 2, 3, on_conflict="use_existing")) == "duplicate_request"  # 3 is not covered
    assert _count(UnlearnRequest) == 1


@pytest.mark.one_database
@pytest.mark.parametrize("method", ["nothing", "SFRON", ""])
def test_an_unknown_method_is_422(client: TestClient, tmp_path: Path, method: str) -> None:
    response = ask(client, register(client, tmp_path), 1, method=method)
    assert response.status_code == 422
    assert code_of(response) == ("unknown_method" if method else "validation_failed")


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"iterations": 0}, "minimum 1"),
        ({"iterations": 1001}, "maximum 1000"),
        ({"iterations": "50"}, "integer"),
        ({"iterations": True}, "integer"),
        ({"iterations": 1.5}, "integer"),
        ({"alpha": 0}, "exclusiveMinimum 0"),
        ({"optimizer": "other"}, "dual, shared"),
        ({"nonsense": 1}, "unknown parameter"),
    ],
)
def test_a_bad_parameter_is_422_and_says_what_was_expected(
    client: TestClient, tmp_path: Path, params: dict[str, object], said: str
) -> None:
    response = ask(client, register(client, tmp_path), 1, params=params)
    assert (response.status_code, code_of(response)) == (422, "invalid_params")
    assert said in response.json()["detail"]
    assert response.json()["errors"][0]["pointer"].startswith("/params")


def test_parameters_of_a_method_without_a_closed_schema_are_refused_too(client: TestClient, tmp_path: Path) -> None:
    response = ask(client, register(client, tmp_path), 1, method="aaa_baseline", params={"x": 1})
    assert code_of(response) == "invalid_params"


# -------------------------------------------------------------------------------------------------------- idempotency


def test_the_same_key_and_body_return_the_first_request(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1, key="k-1")
    again = ask(client, model, 1, key="k-1")
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    assert (_count(UnlearnRequest), _count(RequestEvent)) == (1, 1)


def test_the_same_key_with_another_body_is_422(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    ask(client, model, 1, key="k-1")
    response = ask(client, model, 2, key="k-1")
    assert (response.status_code, code_of(response)) == (422, "idempotency_key_reused")
    assert _count(UnlearnRequest) == 1


@pytest.mark.one_database
@pytest.mark.parametrize("key", [b"", b"a b", "é".encode(), b"x" * 256])
def test_a_key_that_is_no_key_is_422(client: TestClient, tmp_path: Path, key: bytes) -> None:
    model = register(client, tmp_path)
    body = {"model_id": model["id"], "forget": {"classes": [1]}}
    assert client.post("/unlearn-requests", json=body, headers={"Idempotency-Key": key}).status_code == 422


def test_a_race_on_one_key_makes_one_request(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda _: ask(client, model, 1, key="race"), range(8)))
    assert [a.status_code for a in answers] == [202] * 8
    assert len({a.json()["id"] for a in answers}) == 1
    assert _count(UnlearnRequest) == 1


def test_a_race_on_one_key_over_two_models_makes_one_request(client: TestClient, tmp_path: Path) -> None:
    """The two bodies lock two models, so only the key itself can decide; the loser reads again and is told 422."""
    models = [register(client, tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda n: ask(client, models[n % 4], 1, key="race"), range(8)))
    won = [n % 4 for n, a in enumerate(answers) if a.status_code == 202]
    assert len(set(won)) == 1
    assert len(won) == 2
    assert {code_of(a) for a in answers if a.status_code != 202} == {"idempotency_key_reused"}
    assert _count(UnlearnRequest) == 1


def test_a_race_on_one_class_makes_one_request(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    with ThreadPoolExecutor(max_workers=8) as pool:
        codes = [a.status_code for a in pool.map(lambda _: ask(client, model, 1), range(8))]
    assert sorted(codes) == [202] + [409] * 7


def test_a_race_for_the_last_classes_leaves_one(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    with ThreadPoolExecutor(max_workers=5) as pool:
        codes = [a.status_code for a in pool.map(lambda k: ask(client, model, k), range(5))]
    assert sorted(codes) == [202] * 4 + [422]


def test_a_refused_request_leaves_nothing_behind(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    before = _count(LedgerEntry)
    ask(client, model, 0, 1, 2, 3, 4, key="k")
    assert (_count(UnlearnRequest), _count(RequestEvent), _count(LedgerEntry)) == (0, 0, before)
    assert ask(client, model, 1, key="k").status_code == 202  # the key was not used up
