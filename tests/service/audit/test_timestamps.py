"""RFC 3161 time stamps: a round trip with an authority made by OpenSSL, and what is not kept."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from service import db
from service.audit import checkpoints, timestamps, trust
from service.audit.timestamps import StampRefused
from service.config import get_settings
from tests.service.audit import logs
from tests.service.audit.logs import Network, grow

NOTE = "log.example/l\n1\nAAAA\n\n— x y\n"
CONFIG = """
[ca]
distinguished_name = dn
[dn]
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[stamping]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = authority
[authority]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class Authority:
    """A time-stamping authority in a folder. `spoil` changes what it is asked, or what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "config").write_text(CONFIG.format(folder=folder))
        (folder / "serial").write_text("01")
        self.asked = 0
        self.ask: Callable[[bytes], bytes] = lambda query: query
        self.answer: Callable[[bytes], bytes] = lambda reply: reply
        new = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "config"]
        self._run(
            *new, "-x509", "-days", "9", "-subj", "/CN=root", "-extensions", "root", "-keyout", "ca.key", "-out", "ca.pem"
        )
        self._run(*new, "-subj", "/CN=tsa", "-keyout", "tsa.key", "-out", "tsa.csr")
        self._run(
            "openssl", "x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9",
            "-extfile", "config", "-extensions", "stamping", "-out", "tsa.pem",
        )  # fmt: skip

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    @property
    def roots(self) -> Path:
        return self.folder / "ca.pem"

    def reply(self, query: bytes) -> bytes:
        self.asked += 1
        (self.folder / "q").write_bytes(self.ask(query))
        self._run("openssl", "ts", "-reply", "-config", "config", "-queryfile", "q", "-out", "r")
        return self.answer((self.folder / "r").read_bytes())

    def transport(self) -> httpx2.MockTransport:
        def handle(request: httpx2.Request) -> httpx2.Response:
            assert request.headers["content-type"] == "application/timestamp-query"
            return httpx2.Response(200, content=self.reply(request.read()))

        return httpx2.MockTransport(handle)

    def stamp(self, note: str = NOTE) -> bytes:
        trusted = timestamps.certificates(self.roots)
        return timestamps.stamp(httpx2.Client(transport=self.transport()), "http://tsa.example", trusted, note)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("tsa")
    return Authority(folder / "one"), Authority(folder / "two")


@pytest.fixture
def authority(authorities: tuple[Authority, Authority]) -> Authority:
    one = authorities[0]
    one.ask = one.answer = lambda data: data
    one.asked = 0
    return one


def test_a_stamp_holds_for_its_note_and_no_other(authority: Authority, tmp_path: Path) -> None:
    token = authority.stamp()
    trusted = timestamps.certificates(authority.roots)
    timestamps.check(token, trusted, NOTE)
    with pytest.raises(StampRefused, match="Mismatch"):
        timestamps.check(token, trusted, NOTE + "x")
    (tmp_path / "t.tsr").write_bytes(token)
    (tmp_path / "note").write_text(NOTE)
    command = ["openssl", "ts", "-verify", "-in", "t.tsr", "-data", "note", "-CAfile", str(authority.roots)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Verification: OK" in done.stdout + done.stderr


def test_another_authoritys_certificates_do_not_bear_it_out(
    authorities: tuple[Authority, Authority], authority: Authority
) -> None:
    token = authority.stamp()
    with pytest.raises(StampRefused):
        timestamps.check(token, timestamps.certificates(authorities[1].roots), NOTE)


def test_an_old_answer_and_a_spoilt_one_are_refused(authority: Authority) -> None:
    before = authority.stamp()
    authority.answer = lambda _: before
    with pytest.raises(StampRefused, match="Nonce"):
        authority.stamp()
    for spoil in (lambda r: r[:-1] + bytes([r[-1] ^ 1]), lambda r: r[:50], lambda _: b"", lambda _: b"x" * 70_000):
        authority.answer = spoil
        with pytest.raises(StampRefused):
            authority.stamp()


def test_a_rejection_is_refused(authority: Authority) -> None:
    sha256, sha512 = bytes.fromhex("608648016503040201"), bytes.fromhex("608648016503040203")
    authority.ask = lambda query: query.replace(sha256, sha512)  # the digest in it is too short for that
    with pytest.raises(StampRefused):
        authority.stamp()


@pytest.mark.parametrize("status", [404, 500, 302])
def test_no_answer_is_refused(authority: Authority, status: int) -> None:
    http = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(status)))
    with pytest.raises(StampRefused, match="no answer"):
        timestamps.stamp(http, "http://tsa.example", timestamps.certificates(authority.roots), NOTE)


class Both(Network):
    """The authority beside the witnesses."""

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        self.authority = authority.transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.authority.handle_request(request) if request.url.host == "tsa" else super().handle_request(request)


def test_the_notary_has_one_checkpoint_a_day_stamped(
    database: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"ledger_tsa_url": "http://tsa/", "ledger_tsa_certificates": authority.roots}
    mine = logs.notary(Both(authority), **told)
    for _ in range(3):
        grow(1)
        mine.round(hurry=True)
    with db.reading() as session:
        policy = trust.policy(get_settings())
        rows = list(checkpoints.every(session, policy))
        stamped = checkpoints.newest_stamped(session, policy)
    assert [row.time_stamp is not None for row in rows] == [True, False, False]
    assert stamped is not None
    timestamps.check(stamped.time_stamp or b"", timestamps.certificates(authority.roots), stamped.note)
    assert authority.asked == 1


def test_a_failing_authority_blocks_nothing(database: str, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    authority.answer = lambda _: b"no"
    told = {"ledger_tsa_url": "http://tsa/", "ledger_tsa_certificates": authority.roots}
    mine = logs.notary(Both(authority), **told)
    grow(1)
    row = mine.round()
    assert row is not None
    assert row.time_stamp is None
    assert "time_stamp.failed" in caplog.messages
    authority.answer = lambda reply: reply
    grow(1)
    row = mine.round(hurry=True)  # the next checkpoint is stamped instead
    assert row is not None
    assert row.time_stamp is not None
    gone = logs.notary(Both(authority), **{**told, "ledger_tsa_certificates": Path("/nonexistent.pem")})
    with db.transaction() as session:
        row = checkpoints.newest(session, trust.policy(get_settings()))
    grow(1)
    assert gone.round(hurry=True) is not None
