"""POST /unlearn-requests with retain data of its own: what may be chosen, what is refused, and where it is written down."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import catalogue, db
from service.datasets.shapes import image_size
from service.policies import service as policies
from service.tables import UnlearnRequest
from tests.support import (
    CATALOGUE,
    DIGITS,
    ask,
    ask_samples,
    code_of,
    dataset_file,
    image_folder,
    model_folder,
    one_database,
    publish,
    register,
    register_classifier,
    register_completer,
    register_dataset,
    write_json,
)


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    """An image-to-image model of five classes."""
    return register_completer(client, tmp_path)


@pytest.fixture
def letters(client: TestClient, tmp_path: Path) -> str:
    """Another dataset with images of the same size; its id."""
    return register_dataset(client, tmp_path / "letters" / "l.npz", ["a", "b"])


def said_of(client: TestClient, request_id: str) -> dict[str, Any]:
    """What the ledger's first entry about a request says."""
    (entry,) = client.get("/audit/entries", params={"request_id": request_id}).json()["data"]
    assert entry["action"] == "unlearning.request.received"
    public: dict[str, Any] = entry["leaf"]["public"]
    return public


# ------------------------------------------------------------------------------------------------------- what is recorded


def test_what_is_chosen_is_shown_stored_and_recorded(client: TestClient, model: dict[str, Any], letters: str) -> None:
    wanted = {"classes": ["zero", 1], "real": 0.25, "proxy": {"classes": ["4", "four"], "dataset_id": letters}}
    response = ask(client, model, "three", retain=wanted)
    assert response.status_code == 202, response.text
    body = response.json()
    assert body["method"] == "encoder_l2"  # the default of its kind, not the first by name
    assert body["retain"] == {
        "classes": [0, 1],
        "class_names": ["zero", "one"],
        "real": 0.25,
        "proxy": {"classes": [4], "class_names": ["four"], "dataset_id": letters},
    }
    assert client.get(f"/unlearn-requests/{body['id']}").json() == body
    (listed,) = client.get("/unlearn-requests").json()["data"]
    assert listed["retain"] == body["retain"]
    digest = client.get(f"/datasets/{letters}").json()["digest"]
    assert said_of(client, body["id"])["retain"] == {
        "real": "0.25",
        "classes": [0, 1],
        "proxyClasses": [4],
        "proxyDatasetId": letters,
        "proxyDatasetDigest": digest,
    }


@one_database
@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ({"proxy": {"classes": ["four"]}}, {"real": 0.0, "proxy": [4]}),  # proxy data in the place of all real ones
        ({"proxy": {"classes": [4]}, "real": 0}, {"real": 0.0, "proxy": [4]}),
        ({"proxy": {"classes": [4]}, "real": 1}, {"real": 1.0, "proxy": [4]}),  # set aside, and not looked at
        ({"classes": [0]}, {"real": 1.0, "classes": [0]}),
        ({"real": 1.0}, {"real": 1.0}),
        ({"proxy": {"classes": [4]}, "real": -0.0}, {"real": 0.0, "proxy": [4]}),  # "-0.0" would be another text
        ({"classes": [0], "real": 0.5, "proxy": {"classes": [1]}}, {"real": 0.5, "classes": [0], "proxy": [1]}),
    ],
)
def test_what_is_left_out_means_what_one_expects(
    client: TestClient, model: dict[str, Any], wanted: dict[str, Any], shown: dict[str, Any]
) -> None:
    response = ask(client, model, 3, retain=wanted)
    assert response.status_code == 202, response.text
    retain = response.json()["retain"]
    assert (str(retain["real"]), retain["classes"]) == (str(shown["real"]), shown.get("classes"))
    assert (retain["proxy"] or {}).get("classes") == shown.get("proxy")


def test_a_request_that_chooses_nothing_says_nothing(client: TestClient, model: dict[str, Any]) -> None:
    for response in (ask(client, model, 3), ask(client, model, 2, retain=None)):
        assert response.status_code == 202, response.text
        assert response.json()["retain"] is None
        assert "retain" not in said_of(client, response.json()["id"])
        with db.reading() as session:
            assert session.get_one(UnlearnRequest, response.json()["id"]).retain is None


def test_the_same_choice_in_another_spelling_is_not_another_body_under_the_key(
    client: TestClient, model: dict[str, Any], letters: str
) -> None:
    retain = {"real": 0, "proxy": {"dataset_id": letters}}
    first = ask(client, model, 3, retain=retain, key="k")
    again = ask(client, model, 3, retain={**retain, "real": 0.0}, key="k")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert code_of(ask(client, model, 3, retain={**retain, "real": 0.5}, key="k")) == "idempotency_key_reused"


# -------------------------------------------------------------------------------------------------------- what is refused


@one_database
@pytest.mark.parametrize(
    "retain",
    [{}, {"real": 0.5}, {"real": 0}, {"real": -0.1, "proxy": {"classes": [4]}}, {"real": 1.1}, {"real": True}, {"real": "1"},
     {"real": None}, {"classes": []}, {"proxy": {}}, {"proxy": {"classes": []}}, {"proxy": {"classes": [True]}},
     {"proxy": {"dataset_id": ""}}, {"classes": [0], "proxy": {"classes": [4]}}, {"classes": [0] * 2001}, {"share": 1},
     {"proxy": {"classes": [4], "model_id": "x"}}, [], "proxy"],
)  # fmt: skip
def test_a_choice_that_is_none_is_422(client: TestClient, model: dict[str, Any], retain: Any) -> None:
    response = ask(client, model, 3, retain=retain)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert all(e["pointer"].startswith("/retain") for e in response.json()["errors"])


@one_database
def test_a_share_that_is_no_number_is_422(client: TestClient, model: dict[str, Any]) -> None:
    body = json.dumps({"model_id": model["id"], "forget": {"classes": [3]}, "retain": {"real": float("nan")}})
    response = client.post("/unlearn-requests", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a proxy class to forget": ({"proxy": {"classes": ["three", 4]}}, "proxy_forgotten", "/proxy/classes", "three"),
    "a retain class to forget": ({"classes": [0, 3]}, "retain_unfit", "/classes", "three"),
    "one class as both": (
        {"classes": [0, 4], "real": 0.5, "proxy": {"classes": ["four"]}}, "retain_unfit", "/proxy/classes", "four",
    ),
    "an unknown retain class": ({"classes": ["nine"]}, "unknown_class", "/classes", "0 to 4"),
    "an unknown proxy class": ({"proxy": {"classes": [5]}}, "unknown_class", "/proxy/classes", "0 to 4"),
    "nothing left to verify": (
        {"proxy": {"classes": [0, 1, 2, 4]}}, "nothing_to_retain", "/proxy/classes", "no class would be left",
    ),
}  # fmt: skip


@one_database
@pytest.mark.parametrize("case", REFUSED)
def test_a_choice_that_contradicts_the_wish_is_422_and_says_how(client: TestClient, model: dict[str, Any], case: str) -> None:
    retain, code, pointer, word = REFUSED[case]
    response = ask(client, model, "three", retain=retain)
    assert (response.status_code, code_of(response)) == (422, code)
    assert response.json()["errors"][0]["pointer"] == f"/retain{pointer}"
    assert word in response.json()["detail"]
    assert client.get("/unlearn-requests").json()["data"] == []


def test_what_is_forgotten_already_or_pending_stands_in_for_nothing(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    publish(model, ask(client, model, 0).json()["id"], {"w.safetensors": b"x"}, tmp_path)
    ask(client, model, 1)
    for k in (0, 1):
        assert code_of(ask(client, model, 3, retain={"proxy": {"classes": [k]}})) == "proxy_forgotten"
        assert code_of(ask(client, model, 3, retain={"classes": [k]})) == "retain_unfit"
    response = ask(client, model, 3, retain={"proxy": {"classes": [2, 4]}})  # 0 gone, 1 pending, 3 asked, 2 and 4 aside
    assert code_of(response) == "nothing_to_retain"
    assert ask(client, model, 3, retain={"proxy": {"classes": [2]}}).status_code == 202


def test_what_stood_in_once_may_be_forgotten_later(client: TestClient, model: dict[str, Any]) -> None:
    assert ask(client, model, 3, retain={"proxy": {"classes": [4]}}).status_code == 202
    assert ask(client, model, 4).status_code == 202  # queued behind: the first never sees it forgotten


@one_database
def test_another_kind_of_model_takes_no_choice(client: TestClient, tmp_path: Path) -> None:
    """Some of its methods look at other data than the request could choose, so the engine would refuse it too."""
    for other in (register(client, tmp_path), register_classifier(client, tmp_path / "c")):
        response = ask(client, other, 3, retain={"proxy": {"classes": [4]}})
        assert (response.status_code, code_of(response)) == (422, "retain_unsupported")
        assert response.json()["errors"][0]["pointer"] == "/retain"


@one_database
def test_single_samples_of_an_image_to_image_model_cannot_be_verified(client: TestClient, model: dict[str, Any]) -> None:
    response = ask_samples(client, model, "1")
    assert (response.status_code, code_of(response)) == (422, "samples_unverifiable")
    assert "an image-to-image model" in response.json()["detail"]


# ------------------------------------------------------------------------------------------------------ another dataset


@one_database
def test_an_unknown_dataset_is_404(client: TestClient, model: dict[str, Any]) -> None:
    for unknown in ("dset_" + "0" * 32, model["id"], "x"):
        response = ask(client, model, 3, retain={"proxy": {"dataset_id": unknown}})
        assert (response.status_code, code_of(response)) == (404, "dataset_not_found")


@one_database
@pytest.mark.parametrize("name", ["three", "THREE", " Three "])
def test_a_dataset_with_a_forgotten_class_is_422_whatever_its_spelling(
    client: TestClient, model: dict[str, Any], tmp_path: Path, name: str
) -> None:
    other = register_dataset(client, tmp_path / "other" / "o.npz", ["a", name])
    response = ask(client, model, 3, retain={"proxy": {"dataset_id": other}})
    assert (response.status_code, code_of(response)) == (422, "proxy_forgotten")
    assert response.json()["errors"][0]["pointer"] == "/retain/proxy/dataset_id"
    assert response.json()["detail"].endswith("it has: three")
    assert ask(client, model, 2, retain={"proxy": {"dataset_id": other}}).status_code == 202  # three may be retained


def test_a_dataset_with_a_class_that_was_forgotten_before_is_422(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    publish(model, ask(client, model, 3).json()["id"], {"w.safetensors": b"x"}, tmp_path)
    other = register_dataset(client, tmp_path / "other" / "o.npz", ["a", "Three"])
    assert code_of(ask(client, model, 2, retain={"proxy": {"dataset_id": other}})) == "proxy_forgotten"


@one_database
def test_the_models_own_dataset_is_no_other(client: TestClient, model: dict[str, Any]) -> None:
    response = ask(client, model, 3, retain={"proxy": {"dataset_id": model["dataset_id"]}})
    assert (response.status_code, code_of(response)) == (422, "proxy_forgotten")


@one_database
def test_a_dataset_with_a_file_of_a_forgotten_class_is_422_whatever_it_calls_it(
    client: TestClient, model: dict[str, Any], tmp_path: Path
) -> None:
    body = {"format": "npz", "location": str(tmp_path / "data"), "class_names": ["a", "b", "c", "d", "e"]}
    same = client.post("/datasets", json=body).json()["id"]  # one file of all classes
    assert code_of(ask(client, model, 3, retain={"proxy": {"dataset_id": same}})) == "proxy_forgotten"

    def pictures(folder: Path, **seeds: int) -> Path:
        for name, seed in seeds.items():
            (folder / name).mkdir(parents=True)
            noise = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{seed}.png")
        return folder

    def registered(folder: Path, *names: str) -> str:
        body = {"format": "image_folder", "location": str(folder), "class_names": names}
        return str(client.post("/datasets", json=body).json()["id"])

    mine = registered(pictures(tmp_path / "mine", cat=1, dog=2, cow=3), "cat", "dog", "cow")
    weights = {"family": "mae", "location": str(model_folder(tmp_path / "m")), "class_names": ["cat", "dog", "cow"]}
    animals = client.post("/models", json={**weights, "dataset_id": mine}).json()
    pets = registered(pictures(tmp_path / "pets", soft=2, small=9), "soft", "small")
    refused = ask(client, animals, "dog", retain={"proxy": {"dataset_id": pets}})
    assert (refused.status_code, code_of(refused)) == (422, "proxy_forgotten")
    assert refused.json()["detail"].endswith("it has some of: dog")
    back = ask(client, animals, "cat", retain={"proxy": {"dataset_id": pets}})  # whose real images may not be looked at
    assert (back.status_code, code_of(back)) == (422, "retain_unfit")
    assert back.json()["detail"].endswith("it has some of: dog")
    aside = {"proxy": {"dataset_id": pets, "classes": ["dog"]}}
    assert ask(client, animals, "cat", retain=aside).status_code == 202  # it stands in anyway


@one_database
def test_a_dataset_beside_real_images_alone_would_not_be_looked_at(
    client: TestClient, model: dict[str, Any], letters: str
) -> None:
    response = ask(client, model, 3, retain={"real": 1, "proxy": {"dataset_id": letters}})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert "would not be looked at" in response.text


@one_database
@pytest.mark.parametrize(("shape", "found"), [((8, 9), "9x8 grey"), ((4, 4), "4x4 grey"), ((8, 8, 3), "8x8 colour")])
def test_images_of_another_size_are_422(
    client: TestClient, model: dict[str, Any], tmp_path: Path, shape: tuple[int, ...], found: str
) -> None:
    other = register_dataset(client, tmp_path / "other" / "o.npz", ["a", "b"], shape)
    response = ask(client, model, 3, retain={"proxy": {"dataset_id": other}})
    assert (response.status_code, code_of(response)) == (422, "retain_unfit")
    assert response.json()["detail"].endswith(f"8x8 grey, found {found}")


@one_database
def test_pictures_in_folders_are_judged_by_their_first_file(client: TestClient, model: dict[str, Any], tmp_path: Path) -> None:
    def registered(folder: Path, size: tuple[int, int] | None) -> str:
        image_folder(folder, ["a", "b"])
        for path in folder.rglob("*.png") if size else ():
            Image.new("L", size or (1, 1)).save(path)
        body = {"format": "image_folder", "location": str(folder), "class_names": ["a", "b"]}
        return str(client.post("/datasets", json=body).json()["id"])

    wide, fitting, unknown = (registered(tmp_path / name, size) for name, size in (("w", (9, 8)), ("f", (8, 8)), ("u", None)))
    response = ask(client, model, 3, retain={"proxy": {"dataset_id": wide}})
    assert (code_of(response), response.json()["detail"][-3:]) == ("retain_unfit", "9x8")
    assert ask(client, model, 3, retain={"proxy": {"dataset_id": fitting}}).status_code == 202
    assert ask(client, model, 2, retain={"proxy": {"dataset_id": unknown}}).status_code == 202  # the worker will say it


@one_database
def test_a_dataset_that_can_no_longer_be_read_is_422(
    client: TestClient, model: dict[str, Any], letters: str, tmp_path: Path
) -> None:
    (tmp_path / "letters" / "l.npz").unlink()
    response = ask(client, model, 3, retain={"proxy": {"dataset_id": letters}})
    assert (response.status_code, code_of(response)) == (422, "bad_location")
    assert response.json()["errors"][0]["pointer"] == "/retain/proxy/dataset_id"


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("BMP", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}),
     ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}), ("JPEG", {"comment": b"\xff\xc0" * 40})],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_file_tells_its_size(mode: str, form: str, options: dict[str, Any]) -> None:
    """As Pillow reads it, which made it: 37 wide, 21 high."""
    made = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (21, 37) if mode == "L" else (21, 37, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made, form, **options)
    assert Image.open(io.BytesIO(made.getvalue())).size == (37, 21)
    assert image_size(io.BytesIO(made.getvalue())) == (21, 37)
    for length in range(40):  # cut short, it tells the same or nothing
        assert image_size(io.BytesIO(made.getvalue()[:length])) in (None, (21, 37))


@pytest.mark.parametrize(
    "content", [b"", b"a picture", b"\xff\xd8", b"\xff\xd8\xff\xe0\0", b"\xff\xd8" + b"\xff" * 50, b"BM", b"GIF89a"]
)
def test_a_file_that_does_not_tell_its_size_is_left_to_the_worker(content: bytes) -> None:
    assert image_size(io.BytesIO(content)) is None


# --------------------------------------------------------------------------------------------------- beside other requests


def test_use_existing_gives_no_request_that_looks_at_other_data(client: TestClient, model: dict[str, Any]) -> None:
    """Who forbids real images is not served by a request that looks at them; who chooses nothing is served by any."""
    plain, chosen = ask(client, model, 1).json(), ask(client, model, 2, retain={"proxy": {"classes": [4]}}).json()
    again = {"on_conflict": "use_existing"}
    assert code_of(ask(client, model, 1, retain={"proxy": {"classes": [4]}}, **again)) == "duplicate_request"
    assert code_of(ask(client, model, 2, retain={"proxy": {"classes": [0]}}, **again)) == "duplicate_request"
    assert ask(client, model, 2, retain={"real": 0, "proxy": {"classes": ["four"]}}, **again).json()["id"] == chosen["id"]
    assert [ask(client, model, k, **again).json()["id"] for k in (1, 2)] == [plain["id"], chosen["id"]]


@one_database
def test_classes_set_aside_need_no_held_out_images(client: TestClient, tmp_path: Path) -> None:
    """The policy's check looks at held-out images of retained classes; of class one there are none."""
    arrays = {"images": np.zeros((10, 8, 8), np.uint8), "labels": np.arange(10) % 5, "ids": None}
    path = dataset_file(tmp_path / "d" / "d.npz", **arrays)
    body = {"format": "npz", "location": str(path), "class_names": DIGITS, "held_out_ids": ["5", "7", "8", "9"]}
    dataset_id = client.post("/datasets", json=body).json()["id"]
    weights = {"family": "mae", "location": str(model_folder(tmp_path / "m")), "class_names": DIGITS}
    model = client.post("/models", json={**weights, "dataset_id": dataset_id}).json()
    changed = copy.deepcopy(CATALOGUE)
    changed["verifiers"]["classes_gone"]["held_out"] = "retained"
    write_json(tmp_path / "catalogue.json", changed)
    catalogue.get_catalogue.cache_clear()
    assert code_of(ask(client, model, 3)) == "policy_unfit"
    assert ask(client, model, 3, retain={"proxy": {"classes": ["one"]}}).status_code == 202


@one_database
def test_a_check_of_completions_needs_two_held_out_images_of_a_class(client: TestClient, tmp_path: Path) -> None:
    """Of class one there is one: nobody knows how far others would differ, and the answer would come after training."""
    arrays = {"images": np.zeros((15, 8, 8), np.uint8), "labels": np.arange(15) % 5, "ids": None}
    path = dataset_file(tmp_path / "d" / "d.npz", **arrays)
    held_out = ["5", "6", "7", "8", "9", "10", "12", "13", "14"]
    body = {"format": "npz", "location": str(path), "class_names": DIGITS, "held_out_ids": held_out}
    dataset_id = client.post("/datasets", json=body).json()["id"]
    weights = {"family": "mae", "location": str(model_folder(tmp_path / "m")), "class_names": DIGITS}
    model = client.post("/models", json={**weights, "dataset_id": dataset_id}).json()
    changed = copy.deepcopy(CATALOGUE)
    changed["verifiers"]["classes_gone"] |= {"held_out": "all", "completes": True}
    write_json(tmp_path / "catalogue.json", changed)
    policy = json.loads((tmp_path / "policy.json").read_text())
    sampling = {"corruptions": [{"kind": "center", "ratio": 0.25}]}
    write_json(tmp_path / "policy.json", policy | {"name": "completing", "sampling": sampling})
    policies._read.cache_clear()
    catalogue.get_catalogue.cache_clear()
    refused = ask(client, model, 3)
    assert code_of(refused) == "policy_unfit"
    assert refused.json()["detail"].endswith("the dataset has fewer than 2 of: one")
