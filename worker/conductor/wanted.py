"""`expunge verify-model`: what the caller brings, as it came from the command line, and what may be wrong with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUEST = "verify-model"
"""The id of a request that nobody made."""

Json = dict[str, Any]


class Misused(Exception):
    """What was asked for cannot be meant."""


class Undecidable(Exception):
    """Something is missing without which no verdict can be reached."""


class Unsound(Exception):
    """The checkpoint is not what the certificate beside it says."""


@dataclass(frozen=True)
class Wanted:
    """What the caller brings, as it came from the command line."""

    directory: Path
    key: Path | None = None
    """The signer's public key; None: the certificate's signature is not looked at."""
    policy: str | None = None
    data: Path | None = None
    original: Path | None = None
    parent: Path | None = None
    reference: Path | None = None
    held_out: Path | None = None
    prompts: Path | None = None
    samples: Sequence[Path] = ()
    forget: Sequence[str] = ()
    class_names: Sequence[str] = ()
    family: str | None = None
    method: str | None = None
    params: Path | None = None
    proxy_classes: Sequence[str] | None = None
    """None: those of a certificate whose signature was verified."""
    seed: int | None = None
    ranks: int = 1

    @classmethod
    def of(cls, options: argparse.Namespace) -> Wanted:
        """What the parsed options say of the checkpoint, without those that say where answers go."""
        own = {"judges", "out", "json"}
        return cls(**{key: value for key, value in vars(options).items() if key not in own})


def read_json(path: Path, kind: type[Any]) -> Any:
    """A file that holds a JSON list or object. Raises: Misused."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Misused(f"{path}: expected a file that holds JSON") from error
    if not isinstance(value, kind):
        raise Misused(f"{path}: expected a JSON {'list' if kind is list else 'object'}")
    return value


# ------------------------------------------------------------------------------------------------------------ the options


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="expunge verify-model",
        description="Run the verification gate again on a published checkpoint.",
        epilog="Exit status: 0 PASS, 1 FAIL, 2 usage, 3 INCONCLUSIVE, 4 VOID or ERROR.",
        allow_abbrev=False,
    )
    options.add_argument("directory", type=Path, metavar="DIR", help="the published files, and their certificate")
    options.add_argument("--key", type=Path, metavar="FILE", help="the signer's public key: its signature is verified first")
    options.add_argument("--policy", metavar="NAME|FILE", help="default: the certificate's own, with --key")
    options.add_argument("--data", type=Path, metavar="DIR", help="the dataset: a folder, or an .npz file")
    options.add_argument("--held-out", type=Path, metavar="FILE", help="JSON list of ids that only verification may look at")
    options.add_argument("--original", type=Path, metavar="DIR", help="the model before any forgetting")
    options.add_argument("--parent", type=Path, metavar="DIR", help="the version it was made from; default: the original")
    options.add_argument("--reference", type=Path, metavar="DIR", help="a model trained without what was forgotten")
    options.add_argument("--judges", type=Path, metavar="DIR", help="judges of earlier runs; new ones are kept there")
    options.add_argument("--forget", nargs="+", action="extend", default=[], metavar="CLASS", help="beyond the certificate's")
    options.add_argument("--samples", type=Path, action="append", default=[], metavar="FILE", help="list of ids or openings")
    options.add_argument("--family", help="of the model; default: as the certificate says")
    options.add_argument("--class", dest="class_names", action="append", default=[], metavar="NAME", help="in index order")
    options.add_argument("--prompts", type=Path, metavar="FILE", help="JSON object: a prompt by class name")
    options.add_argument("--method", metavar="NAME", help="it was made with; default: the certificate's, with --key")
    options.add_argument("--params", type=Path, metavar="FILE", help="JSON object: parameters of --method; default: its own")
    options.add_argument(
        "--proxy-class", dest="proxy_classes", nargs="*", action="extend", metavar="CLASS",
        help="set aside, not to be retained; without a name: none is. Default: the certificate's, with --key",
    )  # fmt: skip
    options.add_argument("--seed", type=_count, help="default: the certificate's, with --key, or a new one")
    options.add_argument("--ranks", type=_count, default=1, help="processes to verify with")
    options.add_argument("--out", type=Path, metavar="DIR", help="where to leave report, pictures and log")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    return options


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**53:
        raise argparse.ArgumentTypeError("expected a whole number from 0")
    return value
