"""The verification stage: reload what was *saved*, run the policy's checks in order, write evidence, then the report.

It fails closed. Whatever cannot be measured leaves its check without a gating finding, which `verdict.decide` answers
with ERROR; only a job that cannot be worked on at all, or a device that is too small, ends without a report.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from pydantic import ValidationError

from worker.contract import Check, Finding, JobDirectory, Manifest, Report, Spec, Verdict, document_digest, tree_digest
from worker.engine import distributed, evidence, evidence_of_answers, evidence_of_completions, registry, retrained
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.environment import environment, peak_memory_mb
from worker.engine.errors import EngineError, Integrity, OutOfMemory, in_words, is_out_of_memory
from worker.engine.events import Events
from worker.engine.family import Kind
from worker.engine.files import entries, require_digest, write_document
from worker.engine.intake import read_spec
from worker.engine.looks import look
from worker.engine.region import described
from worker.engine.sampling import SamplingFailed, Studio
from worker.engine.verifier import Env, Need, Params, Verifier
from worker.verdict import decide, owed, tier_reached, unmeasured_units, unproved_references

PHASE = "verifying"
PUBLISHED: dict[Kind, str] = {"i2i": "published_metrics", "generator": "published_distances"}
"""What is reported where the operator mounts the weights, asked for or not."""
PICTURES: dict[Kind, ModuleType] = {
    "generator": evidence,
    "classifier": evidence_of_answers,
    "i2i": evidence_of_completions,
}


@dataclass(frozen=True)
class Planned:
    """A check of the policy, made ready, or the sentence why it cannot run."""

    check: Check
    verifier: Verifier | None
    needs: tuple[Need, ...]
    trouble: str = ""
    params: Params | None = None


def run(job: JobDirectory, ranks: Ranks | None = None) -> Report:
    """Verify `out/` and leave `evidence/` and `report.json`; every rank returns the same report.

    Args:
        ranks: this process among its peers; by default what torchrun's variables say.

    Raises:
        BadInput: spec or data cannot be worked on.
        Integrity: weights or data are not the registered ones, the reference is one of the models that it is compared with, or
            the manifest is not this spec's, whole and complete.
        OutOfMemory: a rank's device is too small.
    """
    if ranks is not None:
        return _run(job, ranks)
    ranks = distributed.start()
    try:
        return _run(job, ranks)
    finally:
        distributed.close(ranks)


def _run(job: JobDirectory, ranks: Ranks) -> Report:
    began = time.monotonic()
    events = Events(job.events, PHASE, speaks=ranks.first)
    if ranks.first:
        clear_answers(job)
        events.begin()
    spec, family = read_spec(job)
    require_digest(job.base, spec.base_digest, "the base weights")
    require_digest(job.original, spec.original_digest, "the original weights")
    if spec.metric_weights_digest is not None:
        require_digest(job.metric_weights, spec.metric_weights_digest, "the weights of metric networks")
    if spec.reference_digest is not None:
        require_digest(job.reference, spec.reference_digest, "the weights of the reference")
    manifest, files = read_manifest(job, spec), entries(job.out)
    if spec.reference_digest is not None:
        others = {"base model": spec.base_digest, "original": spec.original_digest, "candidate": tree_digest(files)}
        retrained.require_another(spec.reference_digest, others)
    dataset = load_dataset(job, spec)
    studio = Studio(
        family,
        {"candidate": job.out, "original": job.original, "parent": job.base, "reference": job.reference},
        labels=spec.labels,
        dataset=dataset,
        sampling=spec.policy.sampling,
        ranks=ranks,
    )
    if not ranks.first:
        return Report.model_validate_json(studio.serve())
    env = Env(
        job=job,
        spec=spec,
        dataset=dataset,
        studio=studio,
        device=ranks.device,
        candidate_files=files,
        promised_files=manifest.files,
        events=events,
    )
    report = measure(env, ranks, began)
    write_document(job.report, report)
    studio.close(report.model_dump_json())
    return report


def clear_answers(job: JobDirectory) -> None:
    """Remove what an earlier launch of this stage answered, so that nothing stale can be taken for this one's."""
    for path in (job.report, job.failure):
        path.unlink(missing_ok=True)
    if job.evidence.is_dir():
        shutil.rmtree(job.evidence)


def read_manifest(job: JobDirectory, spec: Spec) -> Manifest:
    """What the unlearning stage says it wrote.

    Raises:
        Integrity: there is none, or it is another spec's, or its loop did not run to the end.
    """
    try:
        manifest = Manifest.model_validate_json(job.manifest.read_bytes())
    except FileNotFoundError as error:
        raise Integrity("expected manifest.json from the unlearning stage, found none") from error
    except ValidationError as error:
        raise Integrity(f"manifest.json is not a manifest: {in_words(error)}") from error
    if manifest.spec_digest != document_digest(spec):
        raise Integrity("expected a manifest of this spec, found another spec's")
    if not manifest.complete:
        done, total = manifest.iterations_completed, manifest.iterations_total
        raise Integrity(f"expected a finished run, found {done} of {total} iterations")
    return manifest


# ---------------------------------------------------------------------------------------------------------- the checks


def measure(env: Env, ranks: Ranks, began: float) -> Report:
    """Run every check, draw the evidence, and sum up. First rank only."""
    due = owed(env.spec)
    plans = [plan(check, env.spec, env.kind) for check in env.spec.policy.checks if check.verifier in due]
    looking = [plan(check, env.spec, env.kind) for check in retrained.unasked_look(env.spec, env.kind)]
    unasked = [plan(check, env.spec, env.kind) for check in unasked_checks(env.spec, env.kind)]
    env.announce([need for p in (*looking, *plans, *unasked) for need in p.needs] + list(PICTURES[env.kind].needs(env.spec)))
    seconds: dict[str, float] = {}

    def timed(planned: Planned) -> tuple[Finding, ...]:
        start, name = time.monotonic(), planned.check.verifier
        try:
            return run_check(planned, env)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start

    def announce(again: Sequence[Planned]) -> None:
        names = {planned.check.verifier for planned in again}
        env.curves[:] = [curve for curve in env.curves if curve.check not in names]
        env.announce([need for planned in again for need in planned.needs])

    beside = [f for planned in looking for f in timed(planned) if f.subject == "reference" or f.metric == "not_measured"]
    findings, looks = look(
        plans, env.spec, run=timed, enlarge=lambda planned: doubled(planned, env), announce=announce, beside=beside
    )
    findings += beside
    findings += draw_evidence(env, findings)
    informed: list[Finding] = []
    for planned in unasked:
        start = time.monotonic()
        informed += inform(planned, env)
        seconds[planned.check.verifier] = time.monotonic() - start
    verdict = decide(findings, env.spec)
    return Report(
        spec_digest=document_digest(env.spec),
        policy_digest=document_digest(env.spec.policy),
        candidate_digest=tree_digest(env.candidate_files),
        verdict=verdict,
        summary=summary(verdict, findings, env.spec, env.kind),
        findings=(*findings, *informed),
        tier=tier_reached(findings, env.spec),
        curves=tuple(env.curves),
        looks=looks,
        judges=tuple(judge.record for judge in env.judges_used),
        evidence=entries(env.job.evidence) if env.job.evidence.is_dir() else (),
        seconds_verify=time.monotonic() - began,
        seconds_by_check=seconds,
        peak_memory_mb=peak_memory_mb(ranks.device),
        environment=environment(ranks.device, ranks.world),
    )


def doubled(planned: Planned, env: Env) -> Planned | None:
    """The same check on twice the samples; None where it takes none, or can take no more."""
    larger = planned.params.doubled() if planned.params is not None else None
    if larger is None:
        return None
    again = plan(Check(verifier=planned.check.verifier, params=larger.model_dump(mode="json")), env.spec, env.kind)
    return again if again.verifier is not None else None


def plan(check: Check, spec: Spec, kind: Kind) -> Planned:
    """Find a check and give it its thresholds; a policy that asks for the impossible gets ERROR, not silence."""
    found = registry.verifiers().get(check.verifier)
    if found is None:
        return Planned(check, None, (), f"unknown verifier; known: {', '.join(registry.verifiers())}")
    if kind not in found.kinds:
        return Planned(check, None, (), f"measures {' and '.join(found.kinds)} models, expected one for a {kind}")
    try:
        params = found.Params.model_validate(check.params)
        verifier: Verifier = found(params)
        return Planned(check, verifier, verifier.needs(spec), params=params)
    except ValidationError as error:
        return Planned(check, None, (), f"thresholds: {in_words(error)}")
    except EngineError as error:
        return Planned(check, None, (), str(error))


def run_check(planned: Planned, env: Env) -> tuple[Finding, ...]:
    """The findings of one check; if it cannot be measured, one that says why and gates nothing: `decide` gives ERROR.

    Raises:
        OutOfMemory, MemoryError: another device may succeed, so this says nothing about the candidate.
    """
    if planned.verifier is None:
        return (unmeasured(planned.check, planned.trouble),)
    try:
        env.prefetch(planned.needs)
        return planned.verifier.run(env)
    except OutOfMemory:
        raise
    except EngineError as error:
        return (unmeasured(planned.check, str(error), error.code),)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        traceback.print_exc(file=sys.stderr)
        return (unmeasured(planned.check, f"unexpected {type(error).__name__}; the log has the details"),)


def unasked_checks(spec: Spec, kind: Kind) -> tuple[Check, ...]:
    """What is reported whatever the policy: published figures of samples or completions, where the weights are mounted."""
    named = {check.verifier for check in spec.policy.checks}
    wanted = PUBLISHED.get(kind) if spec.metric_weights_digest is not None else None
    return (Check(verifier=wanted),) if wanted is not None and wanted not in named else ()


def inform(planned: Planned, env: Env) -> tuple[Finding, ...]:
    """The findings of a check that the policy does not ask for. They decide nothing, and neither does one that falls short.

    Were a device too small for them alone, a result that earned its verdict would be lost.
    """
    try:
        return tuple(f for f in run_check(planned, env) if not f.gating)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return (unmeasured(planned.check, "the device ran out of memory"),)


def unmeasured(check: Check, sentence: str, code: str = "internal") -> Finding:
    """A check that could not be run. It gates nothing, so the check has no gating finding and the verdict is ERROR."""
    return Finding(
        check=check.verifier,
        metric="not_measured",
        subject="candidate",
        gating=False,
        detail=f"{code}: {sentence}" if code == "judge_unfit" else sentence,
    )


def draw_evidence(env: Env, findings: list[Finding]) -> tuple[Finding, ...]:
    """Write the before/after picture, unless a check could not be measured: then there may be nothing to draw from.

    Returns:
        Nothing, or one gating finding when only the picture shows that a saved model cannot be drawn from, or asked.
    """
    if any(f.metric == "not_measured" for f in findings):
        return ()
    try:
        env.prefetch(PICTURES[env.kind].needs(env.spec))
        PICTURES[env.kind].draw(env)
    except SamplingFailed as error:
        return (
            Finding(
                check="evidence",
                metric="samples_missing",
                subject="candidate",
                gating=True,
                passed=False,
                detail=f"the before/after picture could not be drawn: {error}",
            ),
        )
    return ()


def summary(verdict: Verdict, findings: list[Finding], spec: Spec, kind: Kind) -> str:
    """One sentence for people: what was verified, or the first things that stood in the way."""
    if verdict == "PASS":
        weak = list(dict.fromkeys(f.check for f in findings if f.underpowered))
        excused = f"; underpowered, so that they show nothing: {', '.join(weak)}" if weak else ""
        return f"{shown(spec, kind)}; all {sum(f.gating for f in findings)} gating findings passed{excused}."
    unmeasured_ = [f"{f.check} could not be measured ({f.detail})" for f in findings if f.metric == "not_measured"]
    failed = [f"{f.check}/{f.metric} {in_figures(f)}: {f.detail}" for f in findings if f.gating and f.passed is not True]
    blind = [_blind(f) for f in findings if f.control and f.passed is not False]
    nobody = [f"no check of the policy measures whether {unit} are forgotten" for unit in unmeasured_units(spec)]
    unproved = [_unproved(findings, spec, k) for k in unproved_references(findings, spec)]
    reasons = "; ".join([*unproved, *failed, *unmeasured_, *blind, *nobody][:4]) or "the control was not scored"
    undecided = " so many samples neither show it nor refute it:" if verdict == "INCONCLUSIVE" else ""
    return f"Forgetting {asked(spec)} is not verified ({verdict}):{undecided} {reasons}."


def asked(spec: Spec) -> str:
    """All that was ever to be forgotten on this lineage, for people: classes by name, samples by number."""
    names = [", ".join(spec.class_names[k] for k in spec.all_forgotten)] if spec.all_forgotten else []
    return " and ".join([*names, *([evidence.counted(len(spec.all_forgotten_samples))] if spec.all_forgotten_samples else [])])


def shown(spec: Spec, kind: Kind) -> str:
    """What findings that all passed say of the saved model: `decide` lets none pass that leave out something forgotten."""
    names = ", ".join(spec.class_names[k] for k in spec.all_forgotten)
    says = {
        "generator": f"no longer draws {names}",
        "classifier": f"no longer recognises {names}",
        "i2i": f"completes images of {names} no better than what never saw any",
    }
    claims = [says[kind]] if names else []
    if count := len(spec.all_forgotten_samples):
        claims.append(f"answers {evidence.counted(count)} like images that it has never seen")
    return f"The saved model {' and '.join(claims)}"


def _unproved(findings: Sequence[Finding], spec: Spec, k: int) -> str:
    looks = [f for f in findings if f.subject == "reference" and f.class_index == k and f.passed is False]
    seen = "".join(f": {f.check}{_on(f)} {in_figures(f)}" for f in looks[:1])
    return f"the reference is not shown to be trained without {spec.class_names[k]}{seen}"


def _blind(finding: Finding) -> str:
    if finding.metric.startswith("underpowered"):
        return f"{finding.check}{_on(finding)} is {finding.detail}"
    return f"the original passed {finding.check}{_on(finding)}"


def _on(finding: Finding) -> str:
    hidden = f" under {described(finding.corruption)}" if finding.corruption else ""
    return (f" on {finding.class_name}" if finding.class_name else "") + hidden


def in_figures(finding: Finding) -> str:
    """A finding's number, its bound and its threshold, as far as it has them."""
    bound = finding.lower95 if finding.comparator == "ge" else finding.upper95
    value = "" if finding.value is None else f"{finding.value:.4g}"
    return value if bound is None else f"{value} (bound {bound:.4g}, threshold {finding.threshold:.4g})"
