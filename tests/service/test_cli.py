"""The command line: what it refuses, what it exits with, and that it never shows a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from service import __version__
from service.cli import app
from service.client import ApiError, Client
from service.client.checkpoints import Checkpoints
from service.client.registry import Datasets
from service.config import Settings

ROOT = Path(__file__).resolve().parents[2]
runner = CliRunner()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")}
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def test_every_promised_command_exists() -> None:
    promised = {
        (): {
            "up",
            "serve",
            "worker",
            "signer",
            "migrate",
            "demo",
            "models",
            "datasets",
            "request",
            "checkpoint",
            "verify",
            "verify-model",
            "audit",
            "ledger",
            "witness",
            "webhook",
        },
        ("webhook",): {"create", "list", "rotate", "deliveries", "redeliver"},
        ("models",): {"register", "list"},
        ("request",): {"create", "list", "show", "watch", "cancel", "pause", "resume", "retry", "prioritise"},
        ("checkpoint",): {"download"},
        ("audit",): {"list", "export"},
        ("ledger",): {"policy", "rotate-key", "retire-key", "adopt"},
    }
    for group, commands in promised.items():
        text = runner.invoke(app, [*group, "--help"]).output
        assert [c for c in commands if c not in text] == []


def test_the_version_is_the_package_s() -> None:
    assert runner.invoke(app, ["--version"]).output.strip() == __version__


@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_address_that_is_not_loopback_is_refused_with_the_reason(tmp_path: Path, command: str) -> None:
    done = run(command, EXPUNGE_HOST="0.0.0.0", EXPUNGE_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "EXPUNGE_AUTH=required" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_container_only_the_one_wildcard_address_is_allowed(tmp_path: Path) -> None:
    done = run("serve", EXPUNGE_HOST="192.0.2.1", EXPUNGE_BIND_IN_CONTAINER="1", EXPUNGE_DATA_DIR=str(tmp_path))
    assert done.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "list"),
        ("request", "show", "ureq_x"),
        ("audit", "list"),
        ("audit", "export"),
        ("checkpoint", "download", "c", "d"),
    ],
)
def test_nobody_listening_is_a_sentence_not_a_traceback(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, EXPUNGE_URL="http://127.0.0.1:9", EXPUNGE_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "no answer from the service" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_with_the_status_that_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, "download", full)
    done = runner.invoke(app, ["checkpoint", "download", "c", str(tmp_path)])
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr


def test_names_in_square_brackets_are_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables' markup took them for its own: they vanished, or ended the command in a traceback."""
    row = {"id": f"dset_{'0' * 100}", "name": "[/x]", "format": "npz", "class_names": ["[dog]", "[red]cat"], "digest": "d"}
    monkeypatch.setattr(Datasets, "list", lambda _: iter([row]))
    shown = runner.invoke(app, ["datasets", "list"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("[/x]", "[dog]", "[red]cat"))
    assert row["id"] in shown.stdout

    def refuse(_: object) -> None:
        raise ApiError(422, "unknown_class", "the classes are [/x], [dog]", [])

    monkeypatch.setattr(Datasets, "list", refuse)
    refused = runner.invoke(app, ["datasets", "list"])
    assert refused.exit_code == 1
    assert "the classes are [/x], [dog]" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status"), [(("migrate",), 3), (("keys", "bootstrap"), 3), (("gc",), 3), (("worker",), 2)]
)
def test_a_database_that_is_away_is_a_sentence_not_a_traceback(tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    url = "postgresql://somebody:a-password@127.0.0.1:9/expunge"
    done = run(*arguments, EXPUNGE_DATABASE_URL=url, EXPUNGE_DATA_DIR=str(tmp_path))
    assert done.returncode == status
    assert "database" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "a-password" not in done.stderr + done.stdout


def test_verify_passes_the_verifier_s_status_on(tmp_path: Path) -> None:
    done = run("verify", str(tmp_path / "nowhere"), "--key", str(tmp_path / "nokey"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["valid"] is False


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("datasets", "register", "/nope", "--class", "a", "--held-out", "/nope"), {}),
        (("datasets", "register", "/nope", "--class", "a", "--held-out", "README.md"), {}),
        (("up",), {"EXPUNGE_DATA_DIR": "/proc/nope"}),
        (("up",), {"EXPUNGE_PORT": "abc"}),
        (("up", "--port", "99999"), {}),
    ],
)
def test_a_mistake_is_a_sentence_without_the_value(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    done = run(*arguments, **environment)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "input_value" not in done.stderr
    assert "expunge: " in done.stderr


def test_a_port_in_use_is_refused_at_once(tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = run("up", EXPUNGE_PORT=str(other.getsockname()[1]), EXPUNGE_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == 2
    assert "cannot listen" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--key",), ("x", "--key", "y", "--nonsense")])
def test_wrong_usage_of_verify_is_status_3(arguments: tuple[str, ...]) -> None:
    assert run("verify", *arguments).returncode == 3


def test_what_people_wrote_is_for_the_service_s_user_alone(tmp_path: Path) -> None:
    assert run("migrate", EXPUNGE_DATA_DIR=str(tmp_path / "data")).returncode == 0
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_a_worker_refuses_a_database_that_is_not_migrated(tmp_path: Path) -> None:
    done = run("worker", EXPUNGE_DATA_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "expunge migrate" in done.stderr


def test_a_worker_s_health_check_tells_a_migrated_database_from_none(tmp_path: Path) -> None:
    import os

    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")} | {"EXPUNGE_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "worker.conductor", "--check"]
    before = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert run("migrate", EXPUNGE_DATA_DIR=str(tmp_path)).returncode == 0
    after = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (before.returncode, after.returncode) == (1, 0)


def test_a_lease_shorter_than_two_renewals_is_refused() -> None:
    with pytest.raises(ValueError, match="at least twice"):
        Settings(lease_seconds=5, renew_seconds=3)


def test_a_data_directory_too_deep_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    short = Settings(data_dir=deep).socket_path
    assert len(short) <= 100
    assert short == Settings(data_dir=deep).socket_path
    assert short != Settings(data_dir=tmp_path / ("e" * 120)).socket_path


class Recorded(Client):
    """A client that remembers what was posted, and sends nothing."""

    posts: ClassVar[list[tuple[str, Any]]] = []

    def get(self, _path: str, **_query: Any) -> Any:
        return {"class_names": ["a", "b"]}

    def pages(self, _path: str, **_query: Any) -> Iterator[dict[str, Any]]:
        common = {"id": "r", "status": "queued", "phase": None, "model_id": "m", "checkpoint_id": None, "created_at": "t"}
        yield {**common, "forget": {"class_names": ["a"], "samples": {"count": 0}}}
        yield {**common, "forget": {"class_names": [], "samples": {"count": 3}}}

    def post(self, path: str, body: Any = None, **_more: Any) -> Any:
        self.posts.append((path, body))
        return {"id": "x"}


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    monkeypatch.setattr("service.client.Client", Recorded)
    monkeypatch.setattr(Recorded, "posts", [])
    return Recorded.posts


def test_samples_are_asked_for_by_option_by_list_and_by_lines(tmp_path: Path, posts: list[tuple[str, dict[str, Any]]]) -> None:
    (tmp_path / "lines").write_text("train/a/1.png\n\ntrain/a/2 b.png\n")
    (tmp_path / "list").write_text('["train/a/1.png", 7]')
    for arguments, wanted in (
        (["--forget", "3", "--forget", "x"], {"classes": ["3", "x"]}),
        (["--sample", "p", "--sample", "q"], {"samples": ["p", "q"]}),
        (["--sample", "p", "--samples-file", str(tmp_path / "lines")], {"samples": ["p", "train/a/1.png", "train/a/2 b.png"]}),
        (["--samples-file", str(tmp_path / "list")], {"samples": ["train/a/1.png", "7"]}),
    ):
        done = runner.invoke(app, ["request", "create", "mdl_1", *arguments])
        assert done.exit_code == 0, done.output
        assert posts.pop() == ("/unlearn-requests", {"model_id": "mdl_1", "forget": wanted})


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"[a].png\n[b].png\n", ["[a].png", "[b].png"]),
        (b"{a}.png\n", ["{a}.png"]),
        (b"7\n", ["7"]),
        (b"[" * 100_000, ["[" * 100_000]),
        (b'{"samples": ["a", 2]}', ["a", "2"]),
        (b'\xef\xbb\xbf["a"]', ["a"]),
        ("caf\u00e9.png\r\n".encode(), ["caf\u00e9.png"]),
    ],
)
def test_a_file_of_ids_is_json_as_a_whole_or_lines(
    tmp_path: Path, posts: list[tuple[str, dict[str, Any]]], content: bytes, ids: list[str]
) -> None:
    (tmp_path / "ids").write_bytes(content)
    done = runner.invoke(app, ["request", "create", "mdl_1", "--samples-file", str(tmp_path / "ids")])
    assert done.exit_code == 0, done.output
    assert posts.pop()[1]["forget"] == {"samples": ids}


@pytest.mark.parametrize(
    "content",
    [b"[true, null]", b"[1.5]", b"[[1]]", b"[]", b'{"classes": [1]}', b'{"samples": 3}', b'{"samples": ["a"], "x": 1}',
     "caf\u00e9".encode("latin-1"), "a".encode("utf-16")],
)  # fmt: skip
def test_a_file_that_holds_no_ids_is_one_sentence(
    tmp_path: Path, posts: list[tuple[str, dict[str, Any]]], content: bytes
) -> None:
    (tmp_path / "ids").write_bytes(content)
    done = runner.invoke(app, ["request", "create", "mdl_1", "--samples-file", str(tmp_path / "ids")])
    assert (done.exit_code, len(done.output.splitlines())) == (3, 1)
    assert posts == []


@pytest.mark.parametrize("params", ['{"learning_rate": 1e309}', '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, "{"])
def test_parameters_that_json_does_not_have_are_one_sentence(posts: list[tuple[str, dict[str, Any]]], params: str) -> None:
    done = runner.invoke(app, ["request", "create", "mdl_1", "--forget", "3", "--params", params])
    assert (done.exit_code, done.output.strip()) == (3, "expunge: --params is not valid JSON")
    assert posts == []


@pytest.mark.parametrize("content", ["[1e999]", "[NaN]", "[" * 100_000, "\xff"])
def test_a_list_of_held_out_ids_that_is_none_is_one_sentence(
    tmp_path: Path, posts: list[tuple[str, dict[str, Any]]], content: str
) -> None:
    (tmp_path / "held").write_text(content, encoding="latin-1")
    done = runner.invoke(app, ["datasets", "register", "/x", "--class", "a", "--held-out", str(tmp_path / "held")])
    assert (done.exit_code, len(done.output.splitlines())) == (3, 1)
    assert posts == []


@pytest.mark.parametrize("arguments", [[], ["--forget", "3", "--sample", "p"]])
def test_a_wish_for_nothing_or_for_both_is_a_mistake(posts: list[tuple[str, dict[str, Any]]], arguments: list[str]) -> None:
    assert runner.invoke(app, ["request", "create", "mdl_1", *arguments]).exit_code == 3
    assert posts == []


def test_prompts_are_read_from_a_file(tmp_path: Path, posts: list[tuple[str, dict[str, Any]]]) -> None:
    (tmp_path / "prompts.json").write_text('{"a": "a photo of a", "b": "a photo of b"}')
    arguments = ["models", "register", str(tmp_path), "--dataset", "dset_1", "--prompts", str(tmp_path / "prompts.json")]
    assert runner.invoke(app, arguments).exit_code == 0
    assert posts[0][1]["prompts"] == {"a": "a photo of a", "b": "a photo of b"}


def test_a_list_of_requests_says_how_many_samples(posts: list[tuple[str, dict[str, Any]]]) -> None:
    lines = runner.invoke(app, ["request", "list"]).output.splitlines()
    assert "3 samples" in lines[2]
    assert "samples" not in lines[1]


def test_retain_data_are_sent_as_they_were_given_and_no_more(posts: list[tuple[str, dict[str, Any]]]) -> None:
    for arguments, wanted in (
        ([], None),
        (
            ["--retain-real", "0.25", "--proxy-class", "x", "--proxy-class", "7"],
            {"real": 0.25, "proxy": {"classes": ["x", "7"]}},
        ),
        (["--proxy-dataset", "dset_1"], {"proxy": {"dataset_id": "dset_1"}}),
        (["--retain-class", "y", "--retain-real", "1"], {"classes": ["y"], "real": 1.0}),
        (["--retain-real", "0"], {"real": 0.0}),  # the service says what is missing
    ):
        done = runner.invoke(app, ["request", "create", "mdl_1", "--forget", "3", *arguments])
        assert done.exit_code == 0, done.output
        assert posts.pop()[1].get("retain") == wanted


@pytest.mark.parametrize("share", ["-0.1", "1.1", "half"])
def test_a_share_that_is_none_is_a_mistake(posts: list[tuple[str, dict[str, Any]]], share: str) -> None:
    done = runner.invoke(app, ["request", "create", "mdl_1", "--forget", "3", "--retain-real", share])
    assert done.exit_code == 2
    assert posts == []
