"""Reports as the engine writes them, small and whole, for what is drawn of them."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from service.reports.contents import About
from worker.contract import Curve, Environment, Finding, JudgeRecord, MaskSpec, Report, document_json

Json = dict[str, Any]

ENVIRONMENT = Environment(code_version="0.1.0", python="3.13", torch="2.13.0", device="cpu", ranks=1, threads=2)
JUDGE = JudgeRecord(name="cnn", sha256="a" * 64, cache_key="b" * 64, held_out_accuracy=0.975, held_out_n=400)


def finding(check: str = "forget_rate", metric: str = "unlearning_accuracy", **more: Any) -> Finding:
    """A gating finding that passed, unless it says otherwise."""
    fields: Json = {
        "subject": "candidate", "gating": True, "passed": True, "value": 0.985, "lower95": 0.96, "comparator": "ge",
        "threshold": 0.95, "n": 200, "count": 3, "class_index": 3, "class_name": "cat", "detail": "3 of 200 were judged cat",
    }  # fmt: skip
    return Finding(check=check, metric=metric, **{**fields, **more})


def control(**more: Any) -> Finding:
    """What the original must fail."""
    return finding(subject="original", gating=False, control=True, **{"passed": False, "value": 0.02, "count": 196, **more})


def retained(name: str, **more: Any) -> Finding:
    """A class that is kept: reported, not gating."""
    fields: Json = {"gating": False, "passed": None, "value": 0.95, "lower95": None, "comparator": None, "threshold": None}
    fields |= {"n": 80, "count": 76, "class_index": 1, "class_name": name, "detail": ""}
    return finding("retain_accuracy", "retain_accuracy", **{**fields, **more})


def curve(check: str = "relearning", subject: str = "candidate", **more: Any) -> Curve:
    """A short course of an attack."""
    fields: Json = {
        "name": f"{subject} relearned", "x_name": "update", "y_name": "share judged cat", "x": (0.0, 50.0, 100.0),
        "y": (0.0, 0.4, 0.8), "class_index": 3, "class_name": "cat",
    }  # fmt: skip
    return Curve(check=check, subject=subject, **{**fields, **more})


def report(verdict: Any = "PASS", findings: tuple[Finding, ...] | None = None, **more: Any) -> Json:
    """A report as the attempt's row holds it."""
    fields: Json = {
        "summary": "The saved model no longer draws cat; all 1 gating findings passed.", "judges": (JUDGE,),
        "seconds_verify": 20.5, "seconds_by_check": {"forget_rate": 12.0, "integrity": 0.01}, "peak_memory_mb": 900.0,
        "spec_digest": "1" * 64, "policy_digest": "2" * 64, "candidate_digest": "3" * 64, "environment": ENVIRONMENT,
    }  # fmt: skip
    some = (finding(), control(), retained("dog")) if findings is None else findings
    return document_json(Report(verdict=verdict, findings=some, **{**fields, **more}))


def classifier() -> Json:
    """Of a classifier, after a request for single samples."""
    about: Json = {"class_index": None, "class_name": None, "count": None}
    return report(
        findings=(
            finding("sample_membership", "membership_auc", value=0.51, comparator="le", threshold=0.6, upper95=0.55, **about),
            finding("retain_test_accuracy", "accuracy_drop", value=0.0, comparator="le", threshold=0.02, upper95=0.01, **about),
        )
    )


def image_to_image() -> Json:
    """Of a model that completes images, under two corruptions."""
    masks = (MaskSpec(kind="center", ratio=0.25), MaskSpec(kind="outpaint", ratio=0.5))
    found = tuple(
        finding("forget_completion", "shown_beyond_never_seen", value=v, comparator="le", threshold=0.05, upper95=v + 0.02,
                lower95=v - 0.02, count=None, corruption=mask)
        for mask, v in zip(masks, (0.01, 0.02), strict=True)
    )  # fmt: skip
    return report(findings=found)


def picture(width: int = 20, height: int = 10) -> bytes:
    """Bytes of a PNG."""
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(content, format="PNG")
    return content.getvalue()


ABOUT = About(
    request_id="ureq_" + "0" * 32,
    model="Cats (mdl_1, ddpm)",
    forget=("cat",),
    method="sfron",
    kind="generator",
    policy={"name": "basic-v1", "looks": 3},
    attempt="1 of 1",
    guarantee="empirical",
    checkpoint="ckpt_1",
    titles={"forget_rate": "Forgotten classes are no longer drawn"},
)
