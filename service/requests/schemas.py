"""What clients send about unlearn requests."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StrictInt,
    StrictStr,
    StringConstraints,
    model_validator,
)

from service.compliance.rules import Jurisdiction
from service.compliance.schemas import Recipient
from service.datasets.schemas import ItemId
from service.models.schemas import Key
from service.paging import Moment, Order, PageQuery
from service.requests.lifecycle import Priority, Status
from service.values import LARGEST_INT, Text, small_json

OnConflict = Literal["queue_after", "reject", "use_existing"]
IDEMPOTENCY_KEY = r"^[\x21-\x7e]{1,255}$"

MOST_WANTED = 100_000
MOST_RETAINED = 2_000
"""Classes of one list: they are spelled out in the ledger, whose entries hold 64 KiB."""

ClassRef = Annotated[StrictInt | Annotated[StrictStr, Field(max_length=200)], Field(union_mode="left_to_right")]
"""An index or a name. JSON's true is neither, though Python takes it for 1."""


class Forget(BaseModel):
    """What to forget: whole classes, or single training items."""

    model_config = ConfigDict(extra="forbid")

    classes: list[ClassRef] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_WANTED,
        description="names or indices; a name wins over an index written as text",
    )
    samples: list[ItemId] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_WANTED,
        description="ids of training items: an image folder's paths below the folder, an npz's `ids`, or positions without",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if (self.classes is None) == (self.samples is None):
            raise ValueError("expected either classes or samples")
        return self


class ProxyData(BaseModel):
    """What stands in for real retained images: other classes of the model's dataset, another dataset, or both."""

    model_config = ConfigDict(extra="forbid")

    classes: list[ClassRef] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_RETAINED,
        description="names or indices; set aside: neither forgotten nor verified as retained by this request",
    )
    dataset_id: Key | None = Field(
        default=None,
        description="a registered dataset with images of the same size; none of its class names may be one that is forgotten, "
        "whatever the case of the letters",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.classes is None and self.dataset_id is None:
            raise ValueError("expected classes or dataset_id")
        return self


class Retain(BaseModel):
    """What the unlearner may look at to keep the rest. Image-to-image models only."""

    model_config = ConfigDict(extra="forbid")

    classes: list[ClassRef] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_RETAINED,
        description="names or indices of the classes whose real images may be trained on; default: all that are neither "
        "forgotten nor proxy",
    )
    real: Annotated[float, Field(strict=True)] | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of real retained images in what is trained on to be kept; the rest is proxy data. Default: 0 with "
        "`proxy`, 1 without",
    )
    proxy: ProxyData | None = Field(default=None, description="needed where `real` is below 1")

    @property
    def real_share(self) -> float:
        """What `real` is, or means where it is not given. Zero has no sign: the ledger would hold "-0.0"."""
        return abs(self.real) if self.real is not None else 0.0 if self.proxy else 1.0

    @model_validator(mode="after")
    def _enough_to_draw_from(self) -> Self:
        if self.classes is None and self.real is None and self.proxy is None:
            raise ValueError("expected classes, real or proxy")
        if self.real_share < 1 and self.proxy is None:
            raise ValueError("expected proxy data where real is below 1")
        if self.real_share == 1 and self.proxy is not None and self.proxy.dataset_id is not None:
            raise ValueError("expected real below 1 beside a proxy dataset, which would not be looked at")
        if self.real_share == 0 and self.classes is not None:
            raise ValueError("expected no retain classes where no real retain data are used; real is 0 beside proxy by default")
        return self


GpuClass = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]


class Resources(BaseModel):
    """What to run on."""

    model_config = ConfigDict(extra="forbid")

    ranks: StrictInt | None = Field(default=None, ge=1, le=4096, description="default: all GPUs of the worker, 1 on CPU")
    gpu_class: GpuClass = Field(
        default="default",
        description="only workers that serve it take the request; see /workers",
    )


class UnlearnRequestCreate(BaseModel):
    """Ask a model to forget classes, or single samples."""

    model_config = ConfigDict(extra="forbid")

    model_id: Key
    forget: Forget
    retain: Retain | None = Field(
        default=None, description="default: every training image that is not to be forgotten may be looked at"
    )
    method: Key | None = Field(
        default=None,
        description="default: the family's; see /catalogue. `auto` tries a ladder of recipes, cheapest first, until a result "
        "passes; each of them makes the tests of all stricter",
    )
    params: Annotated[dict[str, JsonValue], small_json(16_384)] = Field(
        default_factory=dict, description="of the method; see /catalogue for their schema and defaults"
    )
    seed: StrictInt | None = Field(default=None, ge=0, le=LARGEST_INT, description="default: random")
    policy: Key | None = Field(
        default=None,
        description="name of the verification policy that the result is held to; see /policies. Default: the "
        "operator's, or the packaged one that fits model and wish",
    )
    resources: Resources = Field(default_factory=Resources)
    priority: Priority = Field(
        default="standard", description="among requests whose latest start is the same, or that have none; see /queue"
    )
    reason: Annotated[Text, StringConstraints(max_length=2000)] | None = None
    external_id: Annotated[Text, StringConstraints(min_length=1, max_length=200)] | None = None
    metadata: Annotated[dict[str, JsonValue], small_json(8_192), Field(max_length=50)] = Field(default_factory=dict)
    on_conflict: OnConflict = Field(
        default="queue_after",
        description="when other requests are pending on the model: run after them, be refused, or be given the pending "
        "request that covers this one",
    )
    jurisdiction: Jurisdiction | None = Field(
        default=None, description="whose clock runs, which `due_at` follows from; with other legal fields alone it is `none`"
    )
    received_at: Moment | None = Field(
        default=None, description="when the person asked, which may be before this call; default: now"
    )
    recipients: list[Recipient] = Field(
        default_factory=list,
        max_length=200,
        description="ids of organisations that were given the data and are to be told; never names of people",
    )

    @property
    def legal(self) -> bool:
        """True when the law's side of the request is to be recorded."""
        return self.jurisdiction is not None or self.received_at is not None or bool(self.recipients)

    @model_validator(mode="after")
    def _a_clock_of_its_own(self) -> Self:
        if self.legal and self.on_conflict == "use_existing":
            raise ValueError("expected no legal fields beside use_existing: another request's clock is another's")
        return self


class Retry(BaseModel):
    """What is to be different from the request that ended. All else is as it was: wish, retain data, law's clock."""

    model_config = ConfigDict(extra="forbid")

    method: Key | None = Field(default=None, description="default: as it was; another one starts from its own parameters")
    params: Annotated[dict[str, JsonValue], small_json(16_384)] | None = Field(
        default=None, description="of the method, in place of all that were given; default: as they were"
    )
    seed: StrictInt | None = Field(default=None, ge=0, le=LARGEST_INT, description="default: as it was")
    policy: Key | None = Field(default=None, description="default: the same by name, as it reads today")


class Amendment(BaseModel):
    """What may be changed of a request that has not ended. A field that is left out stays; null takes `external_id` away."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority | None = None
    external_id: Annotated[Text, StringConstraints(min_length=1, max_length=200)] | None = None
    metadata: Annotated[dict[str, JsonValue], small_json(8_192), Field(max_length=50)] | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("expected priority, external_id or metadata")
        if any(name in self.model_fields_set and getattr(self, name) is None for name in ("priority", "metadata")):
            raise ValueError("expected a value: only external_id may be null")
        return self


class Approval(BaseModel):
    """Approve a request, as it reads now."""

    model_config = ConfigDict(extra="forbid")

    request_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="`approvals.request_digest` of the request that was read"
    )
    comment: Annotated[Text, StringConstraints(max_length=2000)] | None = None


class Rejection(BaseModel):
    """Reject a request, for good."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Text, StringConstraints(min_length=1, max_length=2000)]


class Batch(BaseModel):
    """Several requests at once, in this order."""

    model_config = ConfigDict(extra="forbid")

    items: list[UnlearnRequestCreate] = Field(min_length=1, max_length=100)
    atomic: StrictBool = Field(default=False, description="true: all of them, or none and the first one's problem")


class RequestQuery(PageQuery):
    """Filters of the list."""

    status: list[Status] = Field(default_factory=list, max_length=10, description="any of these")
    model_id: Key | None = None
    external_id: Annotated[Text, StringConstraints(max_length=200)] | None = None
    created_from: Moment | None = Field(default=None, alias="created_at[gte]")
    created_before: Moment | None = Field(default=None, alias="created_at[lt]")
    overdue: bool | None = Field(default=None, description="that are, or are not, past their deadline without an answer now")
    due_before: Moment | None = Field(default=None, description="whose deadline is before this, answered or not")
    order: Order = "desc"
