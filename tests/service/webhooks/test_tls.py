"""Messages go over TLS to whom the name belongs, by an authority that is believed; and to nobody else."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.webhooks import guard
from service.webhooks.guard import SendFailed
from tests.service.webhooks.conftest import Receiver

NAME = "hooks.example.org"


@dataclass
class Authority:
    """Issues certificates for a day."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def found(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        made = _certificate(name, name, key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(key, made.sign(key, hashes.SHA256()))

    def issue(self, name: str, folder: Path) -> Path:
        """Key and certificate of a server, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))])
        made = _certificate(subject, self.certificate.subject, key.public_key()).add_extension(names, critical=False)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file = folder / f"{name}.pem"
        pem = serialization.Encoding.PEM
        file.write_bytes(key.private_bytes(*form) + made.sign(self.key, hashes.SHA256()).public_bytes(pem))
        return file

    def believed(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    at = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    dated = made.not_valid_before(at - timedelta(hours=1)).not_valid_after(at + timedelta(days=1))
    return dated.serial_number(x509.random_serial_number())


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.found()


@pytest.fixture
def secure(receiver: Receiver, authority: Authority, tmp_path: Path) -> Receiver:
    """The receiver, with a certificate for `NAME`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue(NAME, tmp_path))
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    return receiver


def send(receiver: Receiver, tls: ssl.SSLContext | None, name: str = NAME) -> int:
    url = f"https://{name}:{receiver.port}/hook"
    here = {"resolver": lambda _host, _port: ["127.0.0.1"], "loopback": True, "timeout": 5.0}
    return guard.post(url, {"webhook-id": "msg_1"}, b"{}", tls=tls, **here)  # type: ignore[arg-type]


def test_a_message_arrives_over_tls(secure: Receiver, authority: Authority) -> None:
    assert send(secure, authority.believed()) == 204
    [(path, headers, body)] = secure.received
    assert (path, headers["host"], body) == ("/hook", f"{NAME}:{secure.port}", b"{}")


@pytest.mark.parametrize("tls", [None, Authority.found().believed()], ids=["public authorities", "another authority"])
def test_an_authority_that_is_not_believed(secure: Receiver, tls: ssl.SSLContext | None) -> None:
    with pytest.raises(SendFailed, match="connection"):
        send(secure, tls)
    assert secure.received == []


def test_a_certificate_of_another_name(secure: Receiver, authority: Authority) -> None:
    with pytest.raises(SendFailed, match="connection"):
        send(secure, authority.believed(), "other.example.org")
    assert secure.received == []


def test_the_operator_s_own_authority_is_believed(
    secure: Receiver, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SSL_CERT_FILE`, as of every program."""
    bundle = tmp_path / "authorities.pem"
    bundle.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    guard._authorities.cache_clear()
    try:
        assert send(secure, None) == 204
    finally:
        guard._authorities.cache_clear()
