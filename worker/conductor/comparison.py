"""What `expunge verify-model` answers: a verdict of its own, and beside it what the certificate had said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from worker.conductor.dossier import Dossier
from worker.conductor.wanted import Json
from worker.contract import Report, document_digest, document_json

STATUS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "VOID": 4, "ERROR": 4}
NUMBERS = ("value", "lower95", "upper95", "threshold", "n", "count")
ABOUT = ("check", "metric", "subject", "class_index")
WORDS = ("passed", "gating", "control", "comparator")
"""Of a finding, what must be found again: a verdict rests on bounds and thresholds, not on values alone."""


@dataclass(frozen=True)
class Answer:
    """What came out: a verdict and why; with a report, where the gate was run."""

    verdict: str
    reason: str
    dossier: Dossier | None = None
    report: Report | None = None

    @property
    def status(self) -> int:
        return STATUS[self.verdict]

    def as_json(self) -> Json:
        """One object; what is not known is null."""
        spec, report = (self.dossier.spec if self.dossier else None), self.report
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "tier": report.tier if report else None,
            "looks": report.looks if report else None,
            "seed": spec.verification_seed if spec else None,
            "policy": {"name": spec.policy.name, "sha256": document_digest(spec.policy)} if spec else None,
            "candidate_digest": self.dossier.candidate.digest if self.dossier else None,
            "original_digest": spec.original_digest if spec else None,
            "parent_digest": spec.base_digest if spec else None,
            "dataset_digest": spec.dataset.digest if spec else None,
            "certificate": against_certificate(self.dossier, report) if self.dossier else None,
            "signature": self.dossier.certificate.signature if self.dossier and self.dossier.certificate else None,
            "findings": [document_json(f) for f in report.findings] if report else [],
            "seconds": report.seconds_verify if report else None,
        }


def against_certificate(dossier: Dossier, report: Report | None) -> Json | None:
    """What the certificate says beside what was found. Findings are compared only where policy and seed are its own."""
    if dossier.certificate is None:
        return None
    said = dossier.certificate.predicate
    same_policy = said["plan"]["policySha256"] == document_digest(dossier.spec.policy)
    same_seed = int(said["verification"]["seed"]) == dossier.spec.verification_seed
    compared: Json = {"findings": None, "findings_here": None, "findings_equal": None}
    if report is not None and same_policy and same_seed:
        # several may be about the same, one for each setting of a sweep: each is to be found again as often as it was
        theirs = Counter(map(_identity, said["verification"]["findings"]))
        ours = Counter(_identity(document_json(f)) for f in report.findings)
        compared = {"findings": theirs.total(), "findings_here": ours.total(), "findings_equal": (theirs & ours).total()}
    return {"id": said["certificate"]["id"], "same_policy": same_policy, "same_seed": same_seed, **compared}


def _identity(finding: Mapping[str, Any]) -> tuple[str, ...]:
    """What it is about, its words and its numbers, but for the sentence. Certificates hold fractions as decimal strings."""
    corruption = finding.get("corruption")
    hidden = "" if not isinstance(corruption, dict) else "/".join(str(corruption.get(key)) for key in ("kind", "ratio", "seed"))
    return (*(repr(finding.get(key)) for key in (*ABOUT, *WORDS)), hidden, *(_number(finding.get(key)) for key in NUMBERS))


def _number(value: Any) -> str:
    """The same text for 1, 1.0 and "1.00"; what is no number is like nothing that was measured."""
    if value is None:
        return "none"
    try:
        return str(Decimal(str(value)).normalize())
    except InvalidOperation:
        return repr(value)


def sentences(answer: Answer) -> str:
    """The answer for people."""
    lines = [f"{answer.verdict}: {answer.reason}"]
    said = answer.as_json()
    if (report := answer.report) is not None:
        gating = [f for f in report.findings if f.gating]
        lines += [f"  {'passed' if f.passed else 'FAILED'}  {f.check}/{f.metric}: {f.detail}" for f in gating]
        lines.append(f"  tier {report.tier or 'none'}, {report.looks} look(s), {report.seconds_verify:.0f} s")
    if said["policy"]:
        lines.append(f"  policy {said['policy']['name']} ({said['policy']['sha256']}), seed {said['seed']}")
    if said["certificate"] and said["certificate"]["findings"] is not None:
        equal, of = said["certificate"]["findings_equal"], said["certificate"]["findings"]
        here = said["certificate"]["findings_here"]
        lines.append(f"  {equal} of {of} findings of the certificate were found again, to the last digit, among {here} here")
    if said["signature"] == "verified":
        lines.append("  the certificate's signature was verified")
    elif said["signature"]:
        lines.append(
            "  the certificate's signature was not checked (--key FILE does that): what was forgotten is a stranger's word"
        )
    return "\n".join(lines)
