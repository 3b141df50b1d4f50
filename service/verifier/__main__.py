"""`python -m service.verifier ledger|certificate|receipt|dossier …`; without one of these words, `certificate`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from service.verifier.certificate import verify_directory
from service.verifier.ledger import verify_ledger
from service.verifier.proofs import verify_dossier, verify_receipt
from service.verifier.reading import USAGE, Report

COMMANDS = ("ledger", "certificate", "receipt", "dossier")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(prog="expunge verify", description="Exit status: 0 good, 1 tampering found, 2 cannot decide, 3 usage.")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=_Parser)
    about = {
        "ledger": ("directory", "an exported ledger"),
        "certificate": ("directory", "a downloaded checkpoint"),
        "receipt": ("file", "a .tlog-proof"),
        "dossier": ("file", "a request's dossier (.zip)"),
    }
    for kind, (name, what) in about.items():
        one = kinds.add_parser(kind, help=f"check {what}")
        one.add_argument(name, type=Path, help=what)
        one.add_argument(
            "--policy", type=Path, required=kind != "certificate", help="whose ledger is believed (C2SP tlog-policy)"
        )
        one.add_argument("--json", action="store_true", help="print one JSON object")
        if kind == "certificate":
            one.add_argument("--key", type=Path, required=True, help="the signer's public key (PEM)")
        elif kind == "receipt":
            one.add_argument("--leaf", type=Path, help="the entry's text, instead of the one in the proof")
        elif kind == "ledger":
            one.add_argument("--checkpoint", type=Path, action="append", default=[], help="a checkpoint kept elsewhere")
            one.add_argument("--witness-size", type=int, default=0, help="how many entries a witness has seen")
            one.add_argument("--db", type=Path, help="the SQLite file that the ledger was exported from")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = _parser().parse_args(words if words[:1] and words[0] in (*COMMANDS, "-h", "--help") else ["certificate", *words])
    match asked.kind:
        case "ledger":
            report = verify_ledger(asked.directory, asked.policy, asked.checkpoint, asked.witness_size, asked.db)
        case "certificate":
            report = verify_directory(asked.directory, asked.key, asked.policy)
        case "receipt":
            report = verify_receipt(asked.file, asked.policy, asked.leaf)
        case _:
            report = verify_dossier(asked.file, asked.policy)
    told: dict[str, Any] = {"valid": report.valid, "status": report.status, "reason": report.reason, **report.facts}
    print(json.dumps(told) if asked.json else sentence(report))
    return report.status


def sentence(report: Report) -> str:
    """The report in words."""
    if not report.valid:
        return f"NOT VALID: {report.reason}"
    lines = [f"VALID: {report.reason}"]
    for name, value in report.facts.items():
        several = value if isinstance(value, list) else [value] if value not in (None, "") else []
        lines += [f"  {name.replace('_', ' '):<22}{one if isinstance(one, str | int) else json.dumps(one)}" for one in several]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
