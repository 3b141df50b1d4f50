"""The house's walls, checked by the tools that know them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["lint-imports", "--no-cache"], id="import contracts"),
        pytest.param(["mypy"], id="types"),
    ],
)
def test_the_code_keeps_the_rules(command: list[str]) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_api_process_has_no_torch_and_no_worker() -> None:
    loaded = imported_by("import service.app; service.app.create_app()")
    assert not loaded & {"torch", "diffusers", "transformers", "sklearn", "numpy", "scipy", "worker"}


def test_the_first_request_of_an_api_process_imports_no_validator_under_its_lock() -> None:
    code = "from fastapi.testclient import TestClient; from service.app import create_app; TestClient(create_app()).__enter__()"
    assert "jsonschema" in imported_by(code)


def test_the_conductor_process_has_no_torch_and_no_engine() -> None:
    code = "import worker.conductor.tasks, worker.conductor.pipeline, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {name.split(".")[0] for name in loaded} & {"torch", "diffusers", "transformers", "sklearn"}
    assert not any(name.startswith("worker.engine") for name in loaded)


def test_the_doorway_needs_nothing_but_pydantic() -> None:
    loaded = imported_by("import worker.contract, worker.verdict")
    assert not loaded & {"service", "torch", "numpy", "sqlalchemy", "celery", "fastapi"}


def test_the_offline_verifier_loads_nothing_else_of_ours() -> None:
    code = "import service.verifier.__main__, sys; print('\\n'.join(m for m in sys.modules if m.startswith('service')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {
        "service",
        "service.verifier",
        "service.verifier.__main__",
        "service.verifier.certificate",
        "service.verifier.claim",
        "service.verifier.entries",
        "service.verifier.ledger",
        "service.verifier.merkle",
        "service.verifier.note",
        "service.verifier.proofs",
        "service.verifier.reading",
    }


def test_the_verify_command_loads_neither_torch_nor_the_service() -> None:
    code = (
        "import sys\nfrom service.cli import app\n"
        "try: app(['verify', '/nonexistent', '--key', '/nonexistent'], standalone_mode=False)\n"
        "except BaseException: pass\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "service.verifier.certificate" in loaded
    assert not loaded & {"torch", "sqlalchemy", "fastapi", "celery", "service.app", "service.tables"}
