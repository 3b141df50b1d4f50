"""RFC 3161: an authority's word that a checkpoint was there by a certain time, checked before it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import httpx2
import rfc3161_client
from cryptography import x509
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, VerifierBuilder

SECONDS = 20.0
QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"
MOST_BYTES = 65_536


class StampRefused(Exception):
    """The authority did not answer with a time stamp that holds."""


def certificates(path: Path) -> list[x509.Certificate]:
    """Raises: OSError, ValueError."""
    return x509.load_pem_x509_certificates(path.read_bytes())


def stamp(http: httpx2.Client, url: str, trusted: Sequence[x509.Certificate], note: str) -> bytes:
    """Have a note stamped. Returns the authority's whole answer (a DER TimeStampResp), which `openssl ts -verify` reads, too.

    Args:
        trusted: the authority's root, and intermediate certificates where it has any.

    Raises:
        StampRefused: no answer, or one that these certificates, the note or the nonce do not bear out.
    """
    asked = TimestampRequestBuilder().data(note.encode()).hash_algorithm(HashAlgorithm.SHA256).build()
    try:
        answer = http.post(url, content=asked.as_bytes(), headers={"Content-Type": QUERY}, timeout=SECONDS)
        answer.raise_for_status()
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise StampRefused(f"no answer: {type(error).__name__}") from error
    if len(answer.content) > MOST_BYTES:
        raise StampRefused("the answer is too long")
    check(answer.content, trusted, note, nonce=asked.nonce)
    return bytes(answer.content)


def check(token: bytes, trusted: Sequence[x509.Certificate], note: str, nonce: int | None = None) -> None:
    """Does the token say that the note was there, in the name of these certificates? Raises: StampRefused."""
    builder = VerifierBuilder() if nonce is None else VerifierBuilder(nonce=nonce)
    for one in trusted:
        rooted = one.issuer == one.subject
        builder = builder.add_root_certificate(one) if rooted else builder.add_intermediate_certificate(one)
    try:
        read = rfc3161_client.decode_timestamp_response(token)
        builder.build().verify(read, hashlib.sha256(note.encode()).digest())
    except (ValueError, rfc3161_client.VerificationError) as error:
        raise StampRefused(str(error)) from error
