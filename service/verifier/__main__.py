"""`python -m service.verifier DIR --key FILE [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from service.verifier.certificate import USAGE, Outcome, verify_directory


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _Parser(prog="expunge verify", description="Check a downloaded checkpoint offline.")
    parser.add_argument("directory", type=Path, help="the downloaded checkpoint")
    parser.add_argument("--key", type=Path, required=True, help="the signer's public key (PEM)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    wanted = parser.parse_args(arguments)
    outcome = verify_directory(wanted.directory, wanted.key)
    print(json.dumps(outcome.as_json()) if wanted.json else sentence(outcome))
    return outcome.status


def sentence(outcome: Outcome) -> str:
    """The outcome in words."""
    if not outcome.valid:
        return f"NOT VALID: {outcome.reason}"
    facts = outcome.facts
    samples = [f"{facts['forgotten_samples']} samples"] if facts["forgotten_samples"] else []
    names = ", ".join([*facts["forgotten_class_names"], *samples])
    kept = facts["retain_data"]
    return "\n".join(
        [
            f"VALID: {outcome.files} files, {outcome.reason}",
            f"  checkpoint  {facts['checkpoint_id']}",
            f"  model       {facts['model_id']}",
            f"  forgotten   {names}",
            *([f"  retain data {_retain_data(kept)}"] if kept else []),
            f"  method      {facts['method']}{_attempts(facts)}",
            f"  issued at   {facts['issued_at']}",
            f"  tier        {facts['tier'] or 'none claimed'}",
            f"  guarantee   {facts['guarantee']}: {facts['statement']}",
        ]
    )


def _attempts(facts: Mapping[str, Any]) -> str:
    asked = f", asked for: {facts['requested_method']}" if facts["requested_method"] not in (None, facts["method"]) else ""
    return f" (attempt {facts['attempt']} of {facts['attempts']}{asked})" if (facts["attempts"] or 1) > 1 else ""


def _retain_data(kept: Mapping[str, Any]) -> str:
    stood_in = [*kept["proxy_class_names"], *([kept["proxy_dataset_id"]] if kept["proxy_dataset_id"] else [])]
    return f"{kept['real']} real" + (f"; stood in: {', '.join(stood_in)}" if stood_in else "")


if __name__ == "__main__":
    sys.exit(main())
