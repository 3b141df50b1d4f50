"""Documents of image-to-image unlearning: what they refuse, and that older documents keep the digests they had."""

from __future__ import annotations

import hashlib
import json

import pytest
from pydantic import ValidationError

from worker.contract import Check, DatasetSpec, Finding, MaskSpec, Policy, RetainData, Sampling, Spec, document_digest

NAMES = ("cat", "dog", "ship", "truck", "Frog")
OTHER = {"format": "npz", "digest": "1" * 64}


def spec(**changes: object) -> Spec:
    fields: dict[str, object] = {
        "request_id": "r",
        "family": "mae",
        "method": "encoder_l2",
        "seed": 0,
        "verification_seed": 0,
        "class_names": NAMES,
        "forget_classes": (0,),
        "base_digest": "0" * 64,
        "original_digest": "0" * 64,
        "dataset": DatasetSpec(format="npz", digest="2" * 64),
        "policy": Policy(name="p", checks=(Check(verifier="integrity"),)),
    }
    return Spec.model_validate(fields | changes)


def test_a_finding_without_a_protocol_is_written_as_before() -> None:
    """Reports are held by their digest, and a finding of most checks has no protocol to name."""
    told = Finding(check="forget_rate", metric="unlearning_accuracy", subject="candidate", gating=True)
    assert "protocol_id" not in told.model_dump(mode="json")
    named = told.model_copy(update={"protocol_id": "fid/float64"})
    assert Finding.model_validate_json(named.model_dump_json()).protocol_id == "fid/float64"


def test_documents_without_the_new_fields_keep_their_digest() -> None:
    """Requests hold the digest of their policy, and step checkpoints that of their spec."""
    assert "corruptions" not in Sampling().model_dump(mode="json")
    assert "retain" not in spec().model_dump(mode="json")
    old = {"sampler": "ddim", "steps": 20, "guidance_scale": 2.0, "batch_size": 256}
    text = json.dumps(old, sort_keys=True, separators=(",", ":"))
    assert document_digest(Sampling.model_validate(old)) == hashlib.sha256(text.encode()).hexdigest()


def test_what_is_given_is_part_of_the_digest_and_survives_the_wall() -> None:
    asked = Sampling(corruptions=(MaskSpec(kind="center", ratio=0.25),))
    assert document_digest(asked) != document_digest(Sampling())
    assert Sampling.model_validate_json(asked.model_dump_json()) == asked
    kept = spec(retain={"proxy_classes": (3,)})
    assert document_digest(kept) != document_digest(spec())
    assert Spec.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_mask_of_everything_or_nothing_is_no_mask(ratio: float) -> None:
    with pytest.raises(ValidationError, match="ratio"):
        MaskSpec(kind="box", ratio=ratio)


def test_by_default_everything_that_is_not_forgotten_is_retained_and_may_be_trained_on() -> None:
    assert spec().retain_classes == spec().trained_classes == (1, 2, 3, 4)
    assert spec(retain={}).trained_classes == (1, 2, 3, 4)


def test_proxy_classes_are_set_aside() -> None:
    wanted = spec(retain={"real": 0.0, "proxy_classes": (4, 2)})
    assert wanted.retain_classes == (1, 3)
    chosen = spec(retain={"classes": (3,), "proxy_classes": (4,)})  # real retain data alone, class 4 in neither set
    assert (chosen.retain_classes, chosen.trained_classes) == ((1, 2, 3), (3,))


@pytest.mark.parametrize(
    ("retain", "sentence"),
    [
        ({"proxy_classes": (0, 1), "real": 0.0}, "expected proxy classes that are not to be forgotten, got cat"),
        ({"proxy_classes": (4,), "real": 0.5}, "expected proxy classes that are not to be forgotten, got Frog"),
        ({"classes": (0,)}, "expected retain classes that are not to be forgotten, got cat"),
        ({"classes": (1, 2), "proxy_classes": (2,)}, r"got \[2\] as both"),
        ({"classes": (7,)}, "expected different retain classes from 0 to 4"),
        ({"proxy_classes": (1, 1)}, "expected different proxy classes from 0 to 4"),
        ({"real": 0.5}, "expected proxy data where real retain data are 0.5 of a batch, got none"),
        ({"real": 1.5}, "real"),
        ({"real": 0.0, "proxy_classes": (2,), "classes": (1,)}, "expected no retain classes where no real"),
        ({"proxy_dataset": OTHER, "proxy_class_names": ("bus",)}, "expected real below 1 beside a proxy dataset"),
        ({"real": 0.5, "proxy_dataset": OTHER}, "a proxy dataset and its class names, or neither"),
        (
            {"real": 0.5, "proxy_dataset": OTHER, "proxy_class_names": ("bus", " CAT ")},
            "without the classes to forget, got  CAT ",
        ),
        ({"real": 0.5, "proxy_dataset": OTHER, "proxy_class_names": ("frog",)}, "without the classes to forget, got frog"),
    ],
)
def test_retain_data_that_hold_what_is_to_be_forgotten_or_say_nothing_are_refused(
    retain: dict[str, object], sentence: str
) -> None:
    """Class 4 was forgotten by an earlier request on the lineage."""
    with pytest.raises(ValidationError, match=sentence):
        spec(retain=retain, forgotten_classes=(4,))


def test_a_share_of_proxy_data_needs_one_kind_of_them() -> None:
    assert RetainData(real=0.5, proxy_classes=(1,)).proxy_dataset is None
    both = RetainData.model_validate(
        {"real": 0.0, "proxy_dataset": OTHER, "proxy_class_names": ("bus",), "proxy_classes": (1,)}
    )
    assert both.proxy_class_names == ("bus",)
