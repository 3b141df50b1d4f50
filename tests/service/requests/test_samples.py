"""POST /unlearn-requests for single training items: which may be asked for, and where their ids may be read."""

from __future__ import annotations

import copy
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from fastapi.testclient import TestClient
from sqlalchemy import select

from service import catalogue, db
from service.tables import LedgerEntry
from tests.support import (
    CATALOGUE,
    DIGITS,
    ask,
    ask_samples,
    code_of,
    dataset_file,
    image_folder,
    move,
    one_database,
    publish,
    register,
    register_classifier,
    write_json,
)


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    """A classifier of five classes, each with three training pictures (zero/2 of them held out) and one test picture."""
    return register_classifier(client, tmp_path, held_out_ids=["train/zero/2.png"])


def names_of(index: int, *pictures: int) -> list[str]:
    return [f"train/{DIGITS[index]}/{k}.png" for k in pictures]


def test_a_request_for_samples_is_recorded_each_id_once_and_in_order(client: TestClient, model: dict[str, Any]) -> None:
    wanted = [*names_of(2, 1), *names_of(1, 0), *names_of(2, 1)]
    response = ask_samples(client, model, *wanted)
    assert response.status_code == 202, response.text
    body = response.json()
    assert body["forget"] == {"classes": [], "class_names": [], "samples": {"count": 2, "ids": sorted(set(wanted))}}
    assert body["cumulative_forget"] == {"classes": [], "class_names": [], "samples": {"count": 2}}
    assert client.get(f"/unlearn-requests/{body['id']}").json() == body
    (listed,) = client.get("/unlearn-requests").json()["data"]
    assert listed["forget"] == {"classes": [], "class_names": [], "samples": {"count": 2}}  # a page does not carry the ids


def test_no_audit_entry_holds_an_id_or_what_confirms_one_and_the_salted_commitment_binds_the_list(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    wanted = [*names_of(2, 1), *names_of(1, 0)]
    request = ask_samples(client, model, *wanted).json()
    publish(model, request["id"], {"w.safetensors": b"x"}, tmp_path)
    with db.reading() as session:
        leaves = list(session.scalars(select(LedgerEntry.leaf)))
    expected = hashlib.sha256(rfc8785.dumps([request["id"], sorted(wanted)])).hexdigest()
    assert not any(b".png" in leaf or expected.encode() in leaf for leaf in leaves)
    shown = {"request_id": request["id"], "include": "private"}
    entries = client.get("/audit/entries", params=shown).json()["data"]
    entry = next(e for e in entries if e["action"] == "unlearning.request.received")
    assert entry["leaf"]["public"]["samples"] == {"count": 2}
    assert entry["leaf"]["public"]["classes"] == []
    assert entry["private"]["samples_sha256"] == expected
    assert entry["leaf"]["subjectCommitment"]


def test_an_entry_about_classes_says_nothing_of_samples(client: TestClient, model: dict[str, Any]) -> None:
    request = ask(client, model, 1).json()
    (entry,) = client.get("/audit/entries", params={"request_id": request["id"]}).json()["data"]
    assert "samples" not in entry["leaf"]["public"]


@one_database
@pytest.mark.parametrize(
    "forget",
    [{}, {"classes": [1], "samples": ["train/one/0.png"]}, {"samples": []}, {"samples": None}, {"samples": [""]},
     {"samples": [True]}, {"samples": ["x" * 513]}, {"samples": ["\ud800"]}, {"samples": ["a\0"]}, {"sample": ["a"]}],
)  # fmt: skip
def test_a_wish_is_for_classes_or_for_samples(client: TestClient, model: dict[str, Any], forget: dict[str, Any]) -> None:
    import json

    body = json.dumps({"model_id": model["id"], "forget": forget})
    response = client.post("/unlearn-requests", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


@one_database
def test_at_most_a_hundred_thousand_ids_are_taken(client: TestClient, model: dict[str, Any]) -> None:
    response = ask_samples(client, model, *(f"train/one/{k}" for k in range(100_001)))
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    response = ask_samples(client, model, *(f"train/one/{k}" for k in range(100_000)))
    assert (response.status_code, code_of(response), response.json()["unknown"]) == (422, "unknown_sample", 100_000)


def test_unknown_ids_are_422_and_are_counted_not_echoed(client: TestClient, model: dict[str, Any]) -> None:
    response = ask_samples(client, model, *names_of(1, 0), "train/one/jane.png", "train/one/../one/1.png", "one/1.png")
    assert (response.status_code, code_of(response)) == (422, "unknown_sample")
    assert {k: response.json()[k] for k in ("known", "unknown", "held_out")} == {"known": 1, "unknown": 3, "held_out": 0}
    assert "jane" not in response.text


def test_held_out_items_are_422_whether_they_lie_apart_or_are_named(client: TestClient, model: dict[str, Any]) -> None:
    response = ask_samples(client, model, "test/one/0.png", "train/zero/2.png", "train/zero/0.png")
    assert (response.status_code, code_of(response)) == (422, "held_out_sample")
    assert (response.json()["known"], response.json()["held_out"]) == (1, 2)


def test_a_generators_single_samples_cannot_be_verified(client: TestClient, tmp_path: Path) -> None:
    """Whatever the operator's policy says: a policy cannot make verifiable what is not."""
    names = np.array([f"scan-{k}" for k in range(10)])
    dataset_file(tmp_path / "data" / "d.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10) % 5, ids=names)
    from tests.support import model_folder

    model_folder(tmp_path / "model")
    response = ask_samples(client, register(client, tmp_path), "scan-1")
    assert (response.status_code, code_of(response)) == (422, "samples_unverifiable")


# ----------------------------------------------------------------------------------------------------------- the lineage


def test_a_class_keeps_a_training_item_however_the_wish_is_cut_up(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    """Class zero has two items to train on (the third is held out), class one has three."""
    assert code_of(ask_samples(client, model, *names_of(0, 0, 1))) == "emptied_class"
    first = ask_samples(client, model, *names_of(0, 0), *names_of(1, 0)).json()
    response = ask_samples(client, model, *names_of(0, 1))  # one pending, one asked: none of two is left
    assert (response.status_code, code_of(response)) == (422, "emptied_class")
    assert "zero" in response.json()["detail"]
    publish(model, first["id"], {"w.safetensors": b"x"}, tmp_path)
    assert code_of(ask_samples(client, model, *names_of(0, 1))) == "emptied_class"
    assert code_of(ask_samples(client, model, *names_of(1, 1, 2))) == "emptied_class"
    assert ask_samples(client, model, *names_of(1, 1)).status_code == 202
    assert ask(client, model, "zero").status_code == 202  # the class as a class


def test_items_already_forgotten_are_422_alone_and_with_their_class(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    first = ask_samples(client, model, *names_of(1, 0)).json()
    publish(model, first["id"], {"w.safetensors": b"x"}, tmp_path)
    second = ask(client, model, 2).json()
    publish(model, second["id"], {"w.safetensors": b"y"}, tmp_path)
    for gone in (names_of(1, 0), names_of(2, 0)):
        response = ask_samples(client, model, *gone, *names_of(3, 0))
        assert (response.status_code, code_of(response)) == (422, "already_forgotten")
        assert "1 of 2 samples" in response.json()["detail"]


def test_a_class_may_go_after_some_of_its_items(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    ask_samples(client, model, *names_of(1, 0))
    assert ask(client, model, 1).status_code == 202  # the rest of the class: queued behind


def test_what_is_forgotten_adds_up_along_the_lineage(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    wishes = (lambda: ask_samples(client, model, *names_of(1, 0)), lambda: ask(client, model, 3))
    for number, wish in enumerate((*wishes, lambda: ask_samples(client, model, *names_of(2, 0), *names_of(4, 0)))):
        publish(model, wish().json()["id"], {"w.safetensors": b"%d" % number}, tmp_path)
    shown = client.get(f"/models/{model['id']}").json()
    counts = [(v["forgotten"]["classes"], v["forgotten"]["samples"]["count"]) for v in shown["versions"]]
    assert counts == [([], 0), ([], 1), ([3], 1), ([3], 3)]
    assert shown["forgotten"] == {"classes": [3], "class_names": ["three"], "samples": {"count": 3}}
    assert client.get("/models").json()["data"][0]["forgotten"] == shown["forgotten"]
    checkpoint = client.get(f"/checkpoints/{shown['versions'][3]['checkpoint_id']}").json()
    assert checkpoint["forgotten"] == shown["forgotten"]
    after = ask_samples(client, model, *names_of(2, 1)).json()
    assert after["cumulative_forget"]["samples"] == {"count": 4}


def test_a_pending_request_for_an_item_or_its_class_stands_in_the_way(client: TestClient, model: dict[str, Any]) -> None:
    items = ask_samples(client, model, *names_of(1, 0, 1)).json()
    whole = ask(client, model, 2).json()
    for wanted, other in ((names_of(1, 1), items), (names_of(2, 0), whole)):
        response = ask_samples(client, model, *wanted, *names_of(3, 0))
        assert (response.status_code, code_of(response)) == (409, "duplicate_request")
        assert response.json()["request_id"] == other["id"]
        assert response.json()["errors"][0]["pointer"] == "/forget/samples"


def test_use_existing_gives_the_pending_request_that_covers_every_item(client: TestClient, model: dict[str, Any]) -> None:
    items = ask_samples(client, model, *names_of(1, 0, 1)).json()
    whole = ask(client, model, 2).json()
    again = {"on_conflict": "use_existing"}
    assert ask_samples(client, model, *names_of(1, 1), **again).json()["id"] == items["id"]
    assert ask_samples(client, model, *names_of(2, 0, 1, 2), **again).json()["id"] == whole["id"]
    assert code_of(ask_samples(client, model, *names_of(1, 1, 2), **again)) == "duplicate_request"  # one/2 is not covered
    assert ask(client, model, 1, **again).json()["id"] not in (items["id"], whole["id"])  # two items are not their class


def test_items_of_a_request_that_failed_may_be_asked_for_again(client: TestClient, model: dict[str, Any]) -> None:
    first = ask_samples(client, model, *names_of(1, 0)).json()
    move(first["id"], "running", "failed")
    assert ask_samples(client, model, *names_of(1, 0)).status_code == 202


def test_a_race_for_the_last_items_of_a_class_leaves_one(client: TestClient, model: dict[str, Any]) -> None:
    with ThreadPoolExecutor(max_workers=3) as pool:
        codes = [a.status_code for a in pool.map(lambda k: ask_samples(client, model, *names_of(1, k)), range(3))]
    assert sorted(codes) == [202, 202, 422]


# ------------------------------------------------------------------------------------------------------------ the policy


@pytest.fixture
def packaged_policies(client: TestClient) -> None:
    """The operator names no policy: the service chooses."""
    client.app.state.settings = client.app.state.settings.model_copy(update={"policy_file": None})


def policy_of(response: Any) -> str:
    assert response.status_code == 202, response.text
    return str(response.json()["policy"]["name"])


@pytest.mark.usefixtures("packaged_policies")
@pytest.mark.parametrize("done", [True, False], ids=["published", "pending"])
def test_what_was_forgotten_before_is_measured_again_whatever_is_asked_for_now(
    client: TestClient, model: dict[str, Any], tmp_path: Path, done: bool
) -> None:
    """Classes and samples, in either order, whether the first is published or still waits its turn."""
    other = register_classifier(client, tmp_path / "other")
    for lineage, wishes, alone in (
        (model, (lambda m: ask(client, m, 1), lambda m: ask_samples(client, m, *names_of(2, 0))), "classifier-v1"),
        (other, (lambda m: ask_samples(client, m, *names_of(2, 0)), lambda m: ask(client, m, 1)), "classifier-samples-v1"),
    ):
        first = wishes[0](lineage)
        assert policy_of(first) == alone
        if done:
            publish(lineage, first.json()["id"], {"w.safetensors": b"x"}, tmp_path)
        second = wishes[1](lineage)
        assert policy_of(second) == "classifier-classes-and-samples-v1"
        (received,) = client.get("/audit/entries", params={"request_id": second.json()["id"]}).json()["data"]
        assert received["leaf"]["public"]["policySha256"] == second.json()["policy"]["sha256"]


@pytest.mark.usefixtures("packaged_policies")
def test_what_was_withdrawn_is_not_measured(client: TestClient, model: dict[str, Any]) -> None:
    first = ask(client, model, 1).json()
    client.post(f"/unlearn-requests/{first['id']}/cancel")
    assert policy_of(ask_samples(client, model, *names_of(2, 0))) == "classifier-samples-v1"


@one_database
def test_a_policy_of_the_operators_must_measure_what_came_before_too(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    checks = [{"verifier": "integrity"}, {"verifier": "classes_gone"}]
    write_json(tmp_path / "policy.json", {"name": "classes-only", "checks": checks})
    assert ask(client, model, 1).status_code == 202
    response = ask_samples(client, model, *names_of(2, 0))
    assert (response.status_code, code_of(response)) == (422, "policy_unfit")
    assert "samples are forgotten" in response.json()["detail"]
    checks[1] = {"verifier": "samples_gone"}
    write_json(tmp_path / "policy.json", {"name": "samples-only", "checks": checks})
    assert "classes are forgotten" in ask_samples(client, model, *names_of(2, 0)).json()["detail"]
    assert len(client.get("/unlearn-requests").json()["data"]) == 1


# ------------------------------------------------------------------------------------------------------ held-out images


@one_database
@pytest.mark.parametrize(
    ("which", "refused"),
    [("all", (True, True, True, True)), ("retained", (True, False, True, True)), ("forgotten", (False, True, False, True))],
)
def test_a_policy_that_looks_at_held_out_images_needs_some_of_every_class_that_it_looks_at(
    client: TestClient, tmp_path: Path, which: str, refused: tuple[bool, ...]
) -> None:
    """Nothing of class one is held out. Asked for: class zero, class one, items of zero, items of one."""
    pictures = image_folder(tmp_path / "pictures", DIGITS)
    (pictures / "test/one/0.png").unlink()
    model = register_classifier(client, tmp_path, location=str(pictures))
    changed = copy.deepcopy(CATALOGUE)
    for name in ("classes_gone", "samples_gone"):
        changed["verifiers"][name]["held_out"] = which
    write_json(tmp_path / "catalogue.json", changed)
    catalogue.get_catalogue.cache_clear()
    wishes = (
        lambda: ask(client, model, 0),
        lambda: ask(client, model, 1),
        lambda: ask_samples(client, model, *names_of(0, 0)),
        lambda: ask_samples(client, model, *names_of(1, 0)),
    )
    for wish, expected in zip(wishes, refused, strict=True):
        response = wish()
        assert response.status_code == (422 if expected else 202), response.text
        if expected:
            assert code_of(response) == "policy_unfit"
            assert response.json()["detail"].endswith("the dataset has none of: one")
        else:
            client.post(f"/unlearn-requests/{response.json()['id']}/cancel")


# ------------------------------------------------------------------------------------------------------------------- npz


def npz_model(client: TestClient, tmp_path: Path, **arrays: Any) -> dict[str, Any]:
    """Twelve items of two classes in turn."""
    content = {"images": np.zeros((12, 8, 8), np.uint8), "labels": np.arange(12) % 2, **arrays}
    path = dataset_file(tmp_path / "npz" / "d.npz", **content)
    return register_classifier(client, tmp_path, ["a", "b"], format="npz", location=str(path), held_out_ids=["7"])


@one_database
@pytest.mark.parametrize(
    "ids",
    [None, np.arange(12), np.arange(12, dtype=">i2"), np.arange(12, dtype=np.uint8), np.array([str(k) for k in range(12)]),
     np.array([str(k) for k in range(12)], dtype=">U40")],
    ids=["positions", "int64", "big-endian", "bytes", "text", "big-endian text"],
)  # fmt: skip
def test_an_npz_names_its_items_itself(client: TestClient, tmp_path: Path, ids: Any) -> None:
    """Items 0 2 4 … are of class a, 1 3 5 … of class b; 7 is held out, so five of b can be trained on: 1 3 5 9 11."""
    model = npz_model(client, tmp_path, ids=ids)
    assert code_of(ask_samples(client, model, "12")) == "unknown_sample"
    assert code_of(ask_samples(client, model, "7")) == "held_out_sample"
    assert code_of(ask_samples(client, model, "1", "3", "5", "9", "11")) == "emptied_class"
    response = ask_samples(client, model, "1", "3", "5", "9", "0")
    assert (response.status_code, response.json()["forget"]["samples"]["count"]) == (202, 5)


@one_database
def test_a_repetition_is_answered_though_the_data_has_gone(client: TestClient, tmp_path: Path) -> None:
    model = npz_model(client, tmp_path, ids=None)
    first = ask_samples(client, model, "3", key="k").json()
    (tmp_path / "npz" / "d.npz").unlink()
    assert ask_samples(client, model, "3", key="k").json()["id"] == first["id"]
    assert code_of(ask_samples(client, model, "3", key="other")) == "bad_location"
    assert code_of(ask_samples(client, model, "5", key="k")) == "idempotency_key_reused"


@one_database
def test_labels_that_became_no_class_are_refused_where_they_matter_now(client: TestClient, tmp_path: Path) -> None:
    model = npz_model(client, tmp_path, ids=None)
    dataset_file(tmp_path / "npz" / "d.npz", images=np.zeros((12, 8, 8), np.uint8), labels=np.arange(12) % 3, ids=None)
    assert code_of(ask_samples(client, model, "3")) == "bad_location"
    assert ask(client, model, 1).status_code == 202  # the worker hashes the file and says that it was changed


@one_database
def test_no_lock_is_held_while_the_items_are_read(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.datasets import items

    model = npz_model(client, tmp_path, ids=None)
    reading = items.read

    def watched(where: Any) -> Any:
        with db.transaction() as session:  # would wait 15 s for the lock, and fail
            session.execute(select(LedgerEntry.seq))
        return reading(where)

    monkeypatch.setattr(items, "read", watched)
    assert ask_samples(client, model, "3").status_code == 202
