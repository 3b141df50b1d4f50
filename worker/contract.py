"""The doorway between the conductor and the engine: a job directory and the documents in it.

The conductor writes `spec.json`, `base/`, `original/`, `data/` and, if the spec names them, `proxy/`, `reference/` and
`metric_weights/`; the engine answers with `events.jsonl`, `out/`, `manifest.json`, `report.json` or `failure.json`. Nothing but
files crosses, and nothing here imports more than pydantic, so either side can be tested, or run by hand, without the other.

Units: rates are fractions 0-1, keys ending `_points` are 0-100, times are seconds, images are uint8 in [0, 255].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

SCHEMA_VERSION: Literal[1] = 1

EXIT_DONE = 0
"""The stage wrote its answer (`manifest.json` or `report.json`). Never believed without that file."""
EXIT_STOPPED = 75
"""The stage was asked to stop (SIGTERM) and left a step checkpoint behind."""
EXIT_FAILED = 1
"""The stage wrote `failure.json`, or died before it could."""


class Document(BaseModel):
    """A closed, immutable document: unknown keys and NaN are refused, so neither can slip through the wall."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _safe_relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or any(p in ("..", ".") for p in path.split("/")):
        raise ValueError(f"expected a plain relative path, got {path!r}")
    return path


def _absent(value: object) -> bool:
    """Is it the default of a field that older documents do not have? Left out, a document keeps the digest that it had."""
    return value is None or value is False or value == ()


def _one(value: object) -> bool:
    """The same, of a count whose default is 1."""
    return value == 1


Kind = Literal["generator", "classifier", "i2i"]
"""What may be asked of a model: to draw a class, to name one, to complete an image."""

Tier = Literal["L0", "L1", "L2", "L3"]
"""How deep verification looks: intact files, forgetting at a first look, efficacy and utility, robustness."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_safe_relative)]


# ------------------------------------------------------------------------------------------------------------- digests


class FileEntry(Document):
    """One file of a model, a dataset or a checkpoint: where it is, how long it is, what it hashes to."""

    path: RelativePath
    size: int = Field(ge=0)
    sha256: Sha256


def tree_digest(files: Iterable[FileEntry]) -> str:
    """SHA-256 of the JSON list of (path, size, sha256) in path order: one name for a set of files.

    The paths are part of it: renaming a file changes the digest.
    """
    rows = sorted((f.path, f.size, f.sha256) for f in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def document_digest(document: Document) -> str:
    """SHA-256 of a document's JSON with sorted keys: two specs with this digest ask for the same work."""
    text = json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- what is asked for


class MaskSpec(Document):
    """Which cells of an image are hidden from a model that is to complete it. A cell is the model's: a pixel, or a patch.

    Every mask of one spec on one grid hides equally many cells.
    """

    kind: Literal["center", "outpaint", "strip", "box", "brush", "random_patch"] = Field(
        description="a rectangle in the middle, all but one, a strip along a side, a rectangle anywhere, a stroke of a brush, "
        "or single cells anywhere"
    )
    ratio: float = Field(gt=0, lt=1, description="share of the cells that is hidden, as near as whole rows and columns allow")
    seed: int = Field(default=0, ge=0, lt=2**53, description="of the masks that verification draws, beside an image's own seed")


class Sampling(Document):
    """How verification draws images from a generator, or has them completed. Scores depend on it: it is part of the policy."""

    sampler: Literal["ddim", "dpm++"] = Field(
        default="ddim", description="DDIM with eta 0, or DPM-Solver++(2M); both give the same image for the same seed"
    )
    steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=2.0, ge=0.0, le=50.0, description="e = e_null + s (e_class - e_null); 1 is unguided")
    batch_size: int = Field(default=256, ge=1, le=65536, description="images per network call and rank; not part of the result")
    corruptions: tuple[MaskSpec, ...] = Field(
        default=(), exclude_if=_absent, description="what is hidden of the images that an image-to-image model is to complete"
    )


class JudgePolicy(Document):
    """The classifiers that judge samples: how each is trained, and how good it must be before its word counts."""

    epochs: int = Field(default=30, ge=1, le=1000)
    min_accuracy: float = Field(
        default=0.95, ge=0.0, le=1.0, description="on held-out real images; below it the verdict is ERROR"
    )
    seed: int = Field(default=9_001, ge=0)
    judges: Literal[1, 2] = Field(
        default=1,
        exclude_if=_one,
        description="2: another architecture with a seed of its own, as good; an image shows a forgotten class if either says "
        "so, and a retained one if both do",
    )
    slack: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        exclude_if=_absent,
        description="above the judges' false alarms on real images, how often samples may show a class without counting as "
        "drawn, where that is more than a check allows; null: 0.03",
    )


class Check(Document):
    """One verifier that must run, and its thresholds."""

    verifier: str
    params: dict[str, JsonValue] = Field(default_factory=dict)


class Policy(Document):
    """What a result must show before it may be published. Versioned data: the certificate carries its digest."""

    name: str
    sampling: Sampling = Sampling()
    judge: JudgePolicy = JudgePolicy()
    checks: tuple[Check, ...] = Field(min_length=1)
    kind: Kind | None = Field(default=None, exclude_if=_absent, description="of the models that it is for; tiers are of a kind")
    looks: int = Field(
        default=1, ge=1, le=6, exclude_if=_one, description="at one result, each of twice the samples, while it is INCONCLUSIVE"
    )
    attempts: int = Field(
        default=1, ge=1, le=16, exclude_if=_one, description="at one request, that is results that may be verified in turn"
    )

    @property
    def tries(self) -> int:
        """Among which the chance of a false PASS is shared: every look at every attempt is a chance to be lucky."""
        return self.looks * self.attempts


class DatasetSpec(Document):
    """How to read `data/`. Held-out items are for verification alone: no judge and no unlearner trains on them."""

    format: Literal["npz", "image_folder"]
    digest: Sha256
    held_out_ids: tuple[str, ...] = ()


class RetainData(Document):
    """What the unlearner may look at to keep the rest: real images of retained classes, or others that stand in for them.

    Proxy classes stand in: they are of the same dataset, neither forgotten nor retained, and so not verified. A proxy dataset
    is another one, in `proxy/`; of its classes, none may be one that is forgotten.
    """

    classes: tuple[int, ...] = Field(default=(), description="trained on to be kept; default: all neither forgotten nor proxy")
    real: float = Field(default=1.0, ge=0, le=1, description="share of real retained images in what is trained on to be kept")
    proxy_classes: tuple[int, ...] = Field(default=(), description="of the same dataset; set aside where real is 1")
    proxy_dataset: DatasetSpec | None = None
    proxy_class_names: tuple[str, ...] = Field(default=(), description="of the proxy dataset, in index order")

    @model_validator(mode="after")
    def _enough_to_draw_from(self) -> Self:
        if self.real < 1 and not (self.proxy_classes or self.proxy_dataset):
            raise ValueError(f"expected proxy data where real retain data are {self.real:g} of a batch, got none")
        if self.real == 1 and self.proxy_dataset:
            raise ValueError("expected real below 1 beside a proxy dataset, which would not be looked at, got 1")
        if self.real == 0 and self.classes:
            raise ValueError("expected no retain classes where no real retain data are used, got some")
        if bool(self.proxy_dataset) != bool(self.proxy_class_names):
            raise ValueError("expected a proxy dataset and its class names, or neither, got one of them")
        return self


class Spec(Document):
    """What to do. Everything that decides the result is here; two runs of one Spec give the same weights."""

    schema_version: Literal[1] = SCHEMA_VERSION
    request_id: str
    family: str
    method: str
    params: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = Field(ge=0, lt=2**53)
    verification_seed: int = Field(ge=0, lt=2**53, description="not known to the unlearning stage's streams")
    ranks: int = Field(default=1, ge=1, le=4096)
    class_names: tuple[str, ...] = Field(min_length=2)
    prompts: tuple[str, ...] = Field(default=(), description="of a text-conditional model, one a class; default: the names")
    forget_classes: tuple[int, ...] = Field(default=(), description="asked for by this request")
    forget_samples: tuple[str, ...] = Field(default=(), description="ids of training items, in place of classes")
    forgotten_classes: tuple[int, ...] = Field(default=(), description="forgotten earlier on this lineage; verified again")
    forgotten_samples: tuple[str, ...] = Field(default=(), description="the same for items")
    base_digest: Sha256
    original_digest: Sha256
    dataset: DatasetSpec
    policy: Policy
    retain: RetainData | None = Field(default=None, exclude_if=_absent, description="default: every image not to be forgotten")
    metric_weights_digest: Sha256 | None = Field(
        default=None, exclude_if=_absent, description="of the networks of published figures, where the operator mounts them"
    )
    reference_digest: Sha256 | None = Field(
        default=None, exclude_if=_absent, description="of a model trained without what is to be forgotten, where there is one"
    )
    attempt: int = Field(
        default=1, ge=1, exclude_if=_one, description="which of the policy's attempts at the request this is, from 1"
    )

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if bool(self.forget_classes) == bool(self.forget_samples):
            raise ValueError("expected forget_classes or forget_samples, got both or neither")
        if self.attempt > self.policy.attempts:
            raise ValueError(f"expected one of the policy's {self.policy.attempts} attempts, got number {self.attempt}")
        if self.prompts and len(self.prompts) != len(self.class_names):
            raise ValueError(f"expected {len(self.class_names)} prompts, one a class, got {len(self.prompts)}")
        return self

    @model_validator(mode="after")
    def _nothing_forgotten_is_kept(self) -> Self:
        if self.retain is None:
            return self
        gone = set(self.all_forgotten)
        for role, classes in (("retain classes", self.retain.classes), ("proxy classes", self.retain.proxy_classes)):
            if len(set(classes)) != len(classes) or not all(0 <= k < len(self.class_names) for k in classes):
                raise ValueError(f"expected different {role} from 0 to {len(self.class_names) - 1}, got {list(classes)}")
            if gone & set(classes):
                names = ", ".join(self.class_names[k] for k in sorted(gone & set(classes)))
                raise ValueError(f"expected {role} that are not to be forgotten, got {names}")
        if both := set(self.retain.classes) & set(self.retain.proxy_classes):
            raise ValueError(f"expected classes that are retained or stand in, got {sorted(both)} as both")
        forgotten = {self.class_names[k].strip().casefold() for k in gone if k < len(self.class_names)}
        if same := [n for n in self.retain.proxy_class_names if n.strip().casefold() in forgotten]:
            raise ValueError(f"expected a proxy dataset without the classes to forget, got {', '.join(same)}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """What a family is told of each class: its prompt where there is one, else its name."""
        return self.prompts or self.class_names

    @property
    def all_forgotten_samples(self) -> frozenset[str]:
        """Every single item that the result must not have learned from."""
        return frozenset(self.forget_samples) | frozenset(self.forgotten_samples)

    @property
    def all_forgotten(self) -> tuple[int, ...]:
        """Every class that the result must not know, in index order."""
        return tuple(sorted({*self.forget_classes, *self.forgotten_classes}))

    @property
    def retain_classes(self) -> tuple[int, ...]:
        """Every class that the result must still know, in index order. Those that stand in for others are set aside."""
        gone = {*self.all_forgotten, *(self.retain.proxy_classes if self.retain else ())}
        return tuple(k for k in range(len(self.class_names)) if k not in gone)

    @property
    def trained_classes(self) -> tuple[int, ...]:
        """The retained classes whose images may be trained on, in index order."""
        return tuple(sorted(self.retain.classes)) if self.retain and self.retain.classes else self.retain_classes


# ----------------------------------------------------------------------------------------------------- what comes back


SPAN = "span"
"""In the values of a note: which stage it times; `began` and `ended` are seconds since the epoch."""


class Event(Document):
    """One line of `events.jsonl`, written by rank 0: a phase began, work advanced, or a fact worth keeping."""

    at: float = Field(description="seconds since the epoch, engine's clock; for people, never for leases")
    kind: Literal["phase", "progress", "note"]
    phase: str
    completed: int | None = Field(default=None, ge=0)
    total: int | None = Field(default=None, ge=0)
    unit: str | None = None
    estimated_remaining_seconds: float | None = Field(default=None, ge=0)
    values: dict[str, JsonValue] = Field(default_factory=dict)


class Environment(Document):
    """What ran: enough to run it again, nothing about the machine's name or paths."""

    code_version: str
    python: str
    torch: str
    device: str
    ranks: int
    threads: int


class Manifest(Document):
    """The unlearning stage's answer: which files it wrote, and what it did. Written last, by rename."""

    schema_version: Literal[1] = SCHEMA_VERSION
    spec_digest: Sha256
    files: tuple[FileEntry, ...] = Field(min_length=1)
    effective_params: dict[str, JsonValue]
    iterations_completed: int = Field(ge=0)
    iterations_total: int = Field(ge=0)
    resumed_from_iteration: int = Field(default=0, ge=0)
    stopped_early_at: int | None = Field(
        default=None,
        ge=1,
        exclude_if=_absent,
        description="iterations after which a look found enough forgotten; see early_stop_every",
    )
    seconds_prepare: float = Field(ge=0)
    seconds_unlearn: float = Field(ge=0)
    peak_memory_mb: float = Field(ge=0)
    environment: Environment

    @property
    def complete(self) -> bool:
        """True when the loop ran to its end, or decided to end where it did; a return code of 0 alone proves nothing."""
        end = self.iterations_total if self.stopped_early_at is None else self.stopped_early_at
        return self.iterations_completed == end

    @model_validator(mode="after")
    def _stopped_where_it_looked(self) -> Self:
        if self.stopped_early_at is None:
            return self
        every = self.effective_params.get("early_stop_every")
        if (
            not isinstance(every, int)
            or every < 1
            or self.stopped_early_at % every
            or self.stopped_early_at >= self.iterations_total
        ):
            raise ValueError(
                f"expected an early stop at a look before the end, got one after {self.stopped_early_at} iterations"
            )
        return self


class Finding(Document):
    """One measured number held against one threshold."""

    check: str = Field(description="verifier name")
    metric: str
    subject: Literal["candidate", "original", "parent", "reference"]
    gating: bool = Field(description="must pass for the verdict to be PASS")
    control: bool = Field(default=False, description="must NOT pass: an original that passes makes the suite blind (VOID)")
    passed: bool | None = Field(default=None, description="None: reported only")
    open: bool = Field(
        default=False, exclude_if=_absent, description="not passed and not refuted: with more samples it may pass"
    )
    underpowered: bool = Field(
        default=False, exclude_if=_absent, description="so few items could not pass even a true retrain: proves nothing"
    )
    value: float | None = None
    lower95: float | None = Field(default=None, description="one-sided 95 % bound")
    upper95: float | None = Field(default=None, description="one-sided 95 % bound")
    comparator: Literal["ge", "le", "eq"] | None = None
    threshold: float | None = None
    n: int | None = Field(default=None, ge=0)
    count: int | None = Field(default=None, ge=0, description="hits among n")
    class_index: int | None = None
    class_name: str | None = None
    corruption: MaskSpec | None = Field(
        default=None, exclude_if=_absent, description="what was hidden of the images that were completed"
    )
    protocol_id: str | None = Field(
        default=None,
        exclude_if=_absent,
        max_length=400,
        description="how a published kind of figure came about: comparable only under the same one",
    )
    detail: str = Field(default="", description="one plain sentence")


class JudgeRecord(Document):
    """Which judge spoke: its weights' digest, and its accuracy on real held-out images."""

    name: str
    sha256: Sha256
    cache_key: Sha256
    held_out_accuracy: float = Field(ge=0, le=1)
    held_out_n: int = Field(ge=1)


class Curve(Document):
    """What was measured along an axis, for people to look at: an attack's course, a sweep over settings."""

    check: str
    name: str = Field(description="what is drawn, unique within the check")
    x_name: str
    y_name: str
    x: tuple[float, ...] = Field(min_length=1)
    y: tuple[float, ...]
    lower95: tuple[float, ...] = ()
    upper95: tuple[float, ...] = ()
    subject: str = Field(description="candidate, original, reference, or a control: 'novel class'")
    class_index: int | None = None
    class_name: str | None = None
    threshold: float | None = None

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if any(len(part) not in (0, len(self.x)) for part in (self.lower95, self.upper95)) or len(self.y) != len(self.x):
            raise ValueError(f"expected {len(self.x)} values along the curve, got {len(self.y)}")
        return self


Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "VOID", "ERROR"]


class Report(Document):
    """The verification stage's answer. `verdict` is recomputed by every reader with `verdict.decide`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    spec_digest: Sha256
    policy_digest: Sha256
    candidate_digest: Sha256
    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    tier: Tier | None = Field(default=None, exclude_if=_absent, description="reached: what it and those below ask for passed")
    curves: tuple[Curve, ...] = Field(default=(), exclude_if=_absent)
    looks: int = Field(default=1, ge=1, exclude_if=_one, description="that the verdict took")
    judges: tuple[JudgeRecord, ...] = ()
    evidence: tuple[FileEntry, ...] = Field(default=(), description="pictures beside the report, under evidence/")
    seconds_verify: float = Field(ge=0)
    seconds_by_check: dict[str, float] = Field(default_factory=dict)
    peak_memory_mb: float = Field(ge=0)
    environment: Environment


class Failure(Document):
    """Why a stage ended without an answer."""

    code: Literal["diverged", "integrity", "bad_input", "out_of_memory", "judge_unfit", "rank_lost", "internal"]
    message: str
    retryable: bool = False
    step: int | None = None
    loss: float | str | None = Field(default=None, description="'nan' and 'inf' as words: JSON has no such numbers")


# --------------------------------------------------------------------------------------------------- the job directory


class JobDirectory:
    """Where things are in a job directory; both sides of the wall name files through it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.spec = self.root / "spec.json"
        self.base = self.root / "base"
        """The parent version's files: unlearning starts here."""
        self.original = self.root / "original"
        """The lineage's root, before any forgetting: the control. May be a link to `base`."""
        self.data = self.root / "data"
        self.proxy = self.root / "proxy"
        """Another dataset that stands in for retained images, where the spec names one."""
        self.judges = self.root / "judges"
        """Judges by cache key; the conductor brings cached ones and keeps new ones."""
        self.fishers = self.root / "fishers"
        """Fisher information by cache key, brought and kept as the judges are."""
        self.reference = self.root / "reference"
        """A model that was trained without what is to be forgotten, where the spec has its digest."""
        self.metric_weights = self.root / "metric_weights"
        """Networks of published figures, where the spec has their digest. May be a link to where the operator keeps them."""
        self.steps = self.root / "steps"
        """Step checkpoints, so that a killed run resumes."""
        self.out = self.root / "out"
        """The candidate: exactly the files that may be published."""
        self.evidence = self.root / "evidence"
        self.events = self.root / "events.jsonl"
        self.manifest = self.root / "manifest.json"
        self.report = self.root / "report.json"
        self.failure = self.root / "failure.json"

    def read_spec(self) -> Spec:
        """Raises: FileNotFoundError; pydantic.ValidationError when it is not a Spec."""
        return Spec.model_validate_json(self.spec.read_bytes())


def document_json(document: Document) -> dict[str, Any]:
    """A document as plain JSON values."""
    return document.model_dump(mode="json")
