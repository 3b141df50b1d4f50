"""Registering models and reading their lineage."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service import db
from service.tables import Model
from tests.support import DIGITS, code_of, dataset_file, model_folder, register
from worker.contract import FileEntry, tree_digest


@pytest.fixture
def dataset(client: TestClient, tmp_path: Path) -> str:
    location = str(dataset_file(tmp_path / "data" / "d.npz"))
    made = client.post("/datasets", json={"format": "npz", "location": location, "class_names": DIGITS})
    return str(made.json()["id"])


def _post(client: TestClient, dataset: str, folder: Any, **more: Any) -> Any:
    body = {"family": "ddpm", "location": str(folder), "dataset_id": dataset, "class_names": DIGITS, **more}
    return client.post("/models", json=body)


def test_a_model_is_recorded_with_its_files_and_its_entry(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    (version,) = model["versions"]
    assert (version["number"], version["parent_id"], version["forgotten"]["classes"]) == (1, None, [])
    assert [f["path"] for f in version["files"]] == ["config.json", "weights.safetensors"]
    assert version["digest"] == tree_digest(FileEntry(**f) for f in version["files"])  # the worker's own formula
    assert client.get(f"/models/{model['id']}").json() == model
    entries = client.get("/audit/entries", params={"model_id": model["id"]}).json()["data"]
    assert [(e["action"], e["leaf"]["public"]["digest"]) for e in entries] == [("model.registered", version["digest"])]


def test_models_are_listed_newest_first_in_pages(client: TestClient, tmp_path: Path) -> None:
    made = [register(client, tmp_path)["id"] for _ in range(3)]
    first = client.get("/models", params={"limit": 2}).json()
    rest = client.get("/models", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert {m["id"] for m in first["data"] + rest["data"]} == set(made)
    assert (len(first["data"]), rest["has_more"]) == (2, False)
    assert client.get("/models?nonsense=1").status_code == 422


def test_an_unknown_dataset_or_family_is_refused(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert code_of(_post(client, "dset_" + "0" * 32, folder)) == "dataset_not_found"
    assert code_of(_post(client, dataset, folder, family="vae")) == "unknown_family"


def test_class_names_must_be_the_datasets(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    for names in (DIGITS[::-1], DIGITS[:4], [*DIGITS[:4], "Four"]):
        assert code_of(_post(client, dataset, folder, class_names=names)) == "validation_failed"


@pytest.mark.one_database
@pytest.mark.parametrize("names", [["one"], ["a", "a"], ["a", " a "], ["a", ""], ["a", "\0"], ["cafe\u0301", "café"]])
def test_class_names_must_differ_once_normalised(client: TestClient, dataset: str, tmp_path: Path, names: list[str]) -> None:
    assert code_of(_post(client, dataset, model_folder(tmp_path / "m"), class_names=names)) == "validation_failed"


@pytest.mark.one_database
def test_a_model_without_class_names_is_refused(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    without = {"family": "ddpm", "location": str(folder), "dataset_id": dataset}
    assert code_of(client.post("/models", json=without)) == "validation_failed"
    assert code_of(client.post("/models", json={**without, "class_names": []})) == "validation_failed"


# --------------------------------------------------------------------------------------------------------------- prompts

PROMPTS = {name: f"a handwritten {name}" for name in DIGITS}


def test_prompts_are_kept_and_shown(client: TestClient, dataset: str, tmp_path: Path) -> None:
    shuffled = dict(sorted(PROMPTS.items()))
    made = _post(client, dataset, model_folder(tmp_path / "m"), family="wordy", prompts=shuffled)
    assert made.status_code == 201, made.text
    assert made.json()["prompts"] == PROMPTS
    assert client.get(made.headers["location"]).json()["prompts"] == PROMPTS
    assert [m["prompts"] for m in client.get("/models").json()["data"]] == [PROMPTS]
    with db.reading() as session:
        assert session.scalars(select(Model.prompts)).one() == list(PROMPTS.values())  # in class order, as the Spec has them


def test_a_model_may_do_without_prompts(client: TestClient, dataset: str, tmp_path: Path) -> None:
    assert _post(client, dataset, model_folder(tmp_path / "m"), family="wordy").json()["prompts"] is None


@pytest.mark.one_database
@pytest.mark.parametrize(
    "prompts",
    [{}, {"zero": "a zero"}, {**PROMPTS, "five": "a five"}, {**PROMPTS, "zero": ""}, {**PROMPTS, "zero": "x" * 1001},
     {**PROMPTS, "zero": 0}, list(PROMPTS)],
)  # fmt: skip
def test_prompts_are_for_all_classes_or_for_none(client: TestClient, dataset: str, tmp_path: Path, prompts: Any) -> None:
    response = _post(client, dataset, model_folder(tmp_path / "m"), family="wordy", prompts=prompts)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")
    assert all(e["pointer"] == "/prompts" for e in response.json()["errors"])  # the names in it are input


@pytest.mark.one_database
def test_a_family_that_takes_no_prompts_refuses_them(client: TestClient, dataset: str, tmp_path: Path) -> None:
    response = _post(client, dataset, model_folder(tmp_path / "m"), prompts=PROMPTS)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


# ------------------------------------------------------------------------------------------------- what a folder may hold


PIPELINE = (
    "model_index.json", "README.md", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "transformer/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json",
)  # fmt: skip
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
)  # fmt: skip


@pytest.mark.one_database
def test_a_pipeline_of_several_folders_may_be_registered(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    for name in PIPELINE + WEIGHTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "weights.safetensors").read_bytes() if name in WEIGHTS else b"{}")
    made = _post(client, dataset, folder)
    assert made.status_code == 201, made.text
    registered = {f["path"] for f in made.json()["versions"][0]["files"]}
    assert registered == {*PIPELINE, *WEIGHTS, "config.json", "weights.safetensors"}
    (folder / "unet" / "load.py").write_text("print('hello')")
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
@pytest.mark.parametrize("name", ["config.json", "model_index.json", "unet/config.json", "tokenizer/vocab.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"config"', b"{'a': 1}", b"\xff{}", b'{"a": NaN}', b"[" * 100_000, b"{} {}"]
)
def test_configuration_that_no_loader_could_read_is_refused(
    client: TestClient, dataset: str, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    response = _post(client, dataset, folder)
    assert (response.status_code, code_of(response)) == (422, "bad_location")


@pytest.mark.one_database
def test_configuration_too_large_to_be_any_is_refused_unread(
    client: TestClient, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import formats

    folder = model_folder(tmp_path / "m")
    monkeypatch.setattr(formats, "LARGEST_JSON", (folder / "config.json").stat().st_size)
    assert _post(client, dataset, folder).status_code == 201  # exactly the limit
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"} ')
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".PT"])
def test_pickles_are_refused_by_name(client: TestClient, dataset: str, tmp_path: Path, suffix: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / f"weights{suffix}").write_bytes(b"x")
    response = _post(client, dataset, folder)
    assert (response.status_code, code_of(response)) == (422, "pickle_weights")


@pytest.mark.one_database
def test_pickles_are_refused_by_content(client: TestClient, dataset: str, tmp_path: Path) -> None:
    """Renaming a pickle makes no safetensors of it: neither a bare one nor torch's zip."""
    folder = model_folder(tmp_path / "m")
    for protocol in (2, 4, 5):
        (folder / "weights.safetensors").write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol=protocol))
        assert code_of(_post(client, dataset, folder)) == "pickle_weights"
    with zipfile.ZipFile(folder / "weights.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    assert code_of(_post(client, dataset, folder)) == "pickle_weights"


@pytest.mark.one_database
@pytest.mark.parametrize("name", ["modeling.py", "run.sh", "lib.so", "weights", ".env", "x.safetensors.tmp"])
def test_what_does_not_belong_there_is_refused(client: TestClient, dataset: str, tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / name).write_bytes(b"x")
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
@pytest.mark.parametrize(
    "place", ["relative/path", "http://127.0.0.1/x", "https://example.org/x", "ftp://x/y", "file://host/x", "/nothing/here",
              "file:///nothing", "/dev/null", "/proc/self/mem", "/etc/passwd", "s3://bucket/x", "~/x", "\ud800", "/a\0b"],
)  # fmt: skip
def test_a_place_that_is_no_folder_of_ours_is_refused(client: TestClient, dataset: str, place: str) -> None:
    import json

    body = {"family": "ddpm", "location": place, "dataset_id": dataset, "class_names": DIGITS}
    response = client.post("/models", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert code_of(response) in ("bad_location", "validation_failed")


@pytest.mark.one_database
def test_an_empty_folder_and_one_without_weights_are_refused(client: TestClient, dataset: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert code_of(_post(client, dataset, tmp_path / "empty")) == "bad_location"
    folder = model_folder(tmp_path / "m")
    (folder / "weights.safetensors").unlink()
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
def test_links_may_not_leave_the_folder(client: TestClient, dataset: str, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    folder = model_folder(tmp_path / "m")
    (folder / "inside.json").symlink_to(folder / "config.json")
    assert _post(client, dataset, folder).status_code == 201
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    assert code_of(_post(client, dataset, folder)) == "bad_location"
    (folder / "link.json").unlink()
    (folder / "sub").symlink_to(tmp_path, target_is_directory=True)
    assert code_of(_post(client, dataset, folder)) == "bad_location"
    (folder / "sub").unlink()
    (folder / "loop.json").symlink_to(folder / "loop.json")
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    os.mkfifo(folder / "pipe.json")
    assert code_of(_post(client, dataset, folder)) == "bad_location"


@pytest.mark.one_database
def test_a_path_with_blanks_and_escapes_is_taken_as_it_stands(client: TestClient, dataset: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "a b%20c#d")
    for place in (str(folder), folder.as_uri()):
        response = _post(client, dataset, place)
        assert response.status_code == 201, response.text
        assert response.json()["name"] == "a b%20c#d"


@pytest.mark.one_database
def test_no_lock_is_held_while_files_are_read(
    client: TestClient, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes take minutes; SQLite's one write lock must be free meanwhile."""
    from service import files

    hashing = files.hash_files

    def watched(location: Any) -> Any:
        with db.transaction() as session:  # would wait 15 s for the lock, and fail
            session.execute(select(func.count()).select_from(Model))
        return hashing(location)

    monkeypatch.setattr(files, "hash_files", watched)
    assert _post(client, dataset, model_folder(tmp_path / "m")).status_code == 201
