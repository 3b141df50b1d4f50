"""A log with entries, a signer, and witnesses in this process, for tests of the ledger's signatures."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient

from service import db
from service.audit import ledger, merkle, notes, trust
from service.audit.leaves import LOCAL, ModelRegistered
from service.audit.logsigner import LogSigner, open_folder
from service.audit.notary import Notary
from service.audit.witness import Witness, make_app
from service.config import Settings, get_settings
from service.verifier.merkle import Frontier
from service.verifier.note import ED25519, Checkpoint, Key

FACT = ModelRegistered(family="ddpm", dataset_id="d", version_id="v", digest="0" * 64)


class Tree:
    """A log's tree in memory, with all of its past."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.roots: list[bytes] = []
        tree = Frontier()
        self.roots.append(tree.root())
        for leaf in leaves:
            self.nodes |= {(level, idx): value for level, idx, value in tree.append(leaf)}
            self.roots.append(tree.root())

    def proof(self, old: int, new: int) -> list[bytes]:
        return merkle.hashes(merkle.consistency(old, new), self.nodes)


def grow(count: int, **more: Any) -> None:
    """Append entries."""
    for _ in range(count):
        with db.transaction() as session:
            ledger.append(session, FACT, actor=LOCAL, **more)


def log_signer(settings: Settings | None = None) -> LogSigner:
    settings = settings or get_settings()
    return LogSigner(open_folder(settings.log_folder, settings.log_keys_file, settings.ledger_origin))


def rotate(mine: Notary) -> tuple[Key, Key]:
    """A second key of the log signs beside the first one from now on; the old one and the new one."""
    signer: Any = mine._signer
    folder, origin = signer._folder, signer.about().origin
    (old,) = trust.log_keys(get_settings())
    with folder.locked():
        new = folder.add_key(origin)
        folder.publish(origin)
    return old, new


def retire(mine: Notary, key: Key) -> None:
    """This key signs no more."""
    signer: Any = mine._signer
    folder, origin = signer._folder, signer.about().origin
    with folder.locked():
        folder.retire_key(origin, key.id.hex())
        folder.publish(origin)


class Network(httpx2.BaseTransport):
    """Witnesses by host name, and nobody else; one that is `down` does not answer."""

    def __init__(self) -> None:
        self.apps: dict[str, TestClient] = {}
        self.down: set[str] = set()
        self.asked: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        self.asked.append(host)
        if host in self.down or host not in self.apps:
            raise httpx2.ConnectError("nobody answers", request=request)
        headers = {k: v for k, v in request.headers.items() if k.lower() == "content-type"}
        answer = self.apps[host].request(request.method, request.url.path, content=request.read(), headers=headers)
        return httpx2.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)


def a_witness(network: Network, name: str, key: Key, folder: Path) -> Witness:
    """A witness of one log at http://<name>."""
    made = Witness(name, Ed25519PrivateKey.generate(), [key], folder / f"{name}.json")
    network.apps[name] = TestClient(make_app(made))
    return made


def notary(network: Network | None = None, **settings: Any) -> Notary:
    """A notary whose signer is in this process."""
    told = get_settings().model_copy(update=settings)
    return Notary(log_signer(), told, httpx2.Client(transport=network or Network()))


def signed(origin: str, private: Ed25519PrivateKey, size: int, root: bytes) -> str:
    """A checkpoint's note by one key."""
    text = Checkpoint(origin, size, root).text
    return notes.note(text, [notes.signature(origin, private, text)])


def vkey(origin: str, private: Ed25519PrivateKey) -> Key:
    return notes.verifier_key(origin, ED25519, private)


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()
