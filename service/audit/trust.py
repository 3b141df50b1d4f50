"""Whose checkpoints of this ledger are believed: the log's keys as its signer left them, and the operator's witnesses."""

from __future__ import annotations

from service.audit.logsigner import RETIRED
from service.config import Settings
from service.verifier.note import Key, Policy


class NoLogKey(Exception):
    """The signer has not left its verifier keys yet."""


def policy_text(settings: Settings) -> str:
    """C2SP tlog-policy, as it is served and exported. Raises: NoLogKey; OSError: the operator's file cannot be read."""
    lines = _lines(settings)
    where = f" {settings.ledger_url}" if settings.ledger_url else ""
    keys = [line if line.startswith(RETIRED) else f"log {line}{where}" for line in lines]
    witnesses = settings.ledger_witnesses.read_text() if settings.ledger_witnesses else "quorum none\n"
    return "\n".join([*keys, "", witnesses])


def policy(settings: Settings) -> Policy:
    """The same, read. Raises: NoLogKey, OSError; Malformed: the operator's file is none of that format."""
    return Policy.parse(policy_text(settings))


def log_keys(settings: Settings) -> list[Key]:
    """The keys that sign now, oldest first. Raises: NoLogKey, OSError, Malformed."""
    return policy(settings).logs


def origin(settings: Settings) -> str:
    """The ledger's name, whatever the operator's witnesses. Raises: NoLogKey: nobody signs it yet; OSError, Malformed."""
    signing = [line for line in _lines(settings) if not line.startswith(RETIRED)]
    if not signing:
        raise NoLogKey("no key signs the log")
    return Key.parse(signing[0]).name


def _lines(settings: Settings) -> list[str]:
    """As the signer left them. Raises: NoLogKey, OSError."""
    try:
        return settings.log_keys_file.read_text().splitlines()
    except FileNotFoundError:
        raise NoLogKey("the signer has not made the log's key yet") from None
