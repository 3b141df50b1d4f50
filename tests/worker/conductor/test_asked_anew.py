"""A rejected request may be asked anew, and every certificate and report says how often it was."""

from __future__ import annotations

import dataclasses

import pytest

from service import db
from service.certificates.limits import NOT_RUN, asked_before
from service.reports.contents import page
from service.requests import reporting
from service.tables import Model, ModelVersion, new_id
from tests.worker.conductor import house as h
from worker.conductor import pipeline

pytestmark = pytest.mark.usefixtures("database")
one_database = pytest.mark.one_database


def told(request_id: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The facts and the limits on a request's report page."""
    with db.reading() as session:
        read = reporting.read(session, request_id)
    shown = page(read.report, read.about)
    return dict(shown.facts), shown.limits


def twin(house: h.House) -> h.House:
    """The same files, registered as another model."""
    with db.transaction() as session:
        model, version = session.get_one(Model, house.model_id), session.get_one(ModelVersion, house.version_id)
        copy = dataclasses.replace(house, model_id=new_id("mdl"), version_id=new_id("mver"))
        common = {"created_at": model.created_at}
        session.add(
            Model(
                id=copy.model_id, name="twin", family=model.family, dataset_id=model.dataset_id, current_version=1,
                class_names=model.class_names, created_by=model.created_by, **common,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            ModelVersion(
                id=copy.version_id, model_id=copy.model_id, number=1, location=version.location, files=version.files,
                digest=version.digest, forgotten_classes=[], **common,
            )
        )  # fmt: skip
    return copy


def test_rejected_requests_for_the_same_are_counted_and_others_are_not(house: h.House) -> None:
    room = h.make_room()
    same = [h.ask(house, 3, verify="fail"), h.ask(house, 3, verify="open"), h.ask(twin(house), 3, verify="fail")]
    others = [h.ask(house, 3, 4, verify="fail"), h.ask(house, samples=("1",), verify="fail"), h.ask(house, 3, verify="void")]
    for request_id in (*same, *others):
        assert pipeline.run(request_id, room) == "failed"
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    said = h.certificate(request_id)
    assert said["attempts"]["rejectedRequests"] == 3
    assert said["limits"].count(asked_before(3)) == 1
    facts, limits = told(request_id)
    assert facts["Rejected before"] == "3 other requests to forget the same of the same version"
    assert asked_before(3) in limits


@one_database
def test_the_number_is_that_of_the_time_of_the_verdict(house: h.House) -> None:
    """A report says tomorrow what its certificate says today."""
    room, again = h.make_room(), twin(house)
    first = h.ask(house, 3)
    assert pipeline.run(first, room) == "succeeded"
    assert pipeline.run(h.ask(again, 3, verify="fail"), room) == "failed"
    assert h.certificate(first)["attempts"]["rejectedRequests"] == 0
    assert "Rejected before" not in told(first)[0]


@one_database
def test_a_request_that_was_cancelled_after_a_rejection_counts(house: h.House) -> None:
    room = h.make_room()
    first = h.ask_auto(house, ("sfron", {"verify": "fail"}), ("retrain", {}))
    assert pipeline.run(first, room) == "queued"
    h.withdraw(first)
    second = h.ask(house, 3)
    assert pipeline.run(second, room) == "succeeded"
    assert h.certificate(second)["attempts"]["rejectedRequests"] == 1


@one_database
@pytest.mark.parametrize("wish", [{}, {"samples": ("a", "b")}, {"retain": "classes"}])
def test_certificate_and_report_have_the_same_limits(house: h.House, wish: dict[str, object]) -> None:
    """Under a policy that names no kind, too: what it left out follows from the family's."""
    if "retain" in wish:
        wish = {"retain": {"real": 1.0, "classes": [], "proxy_classes": [8, 9], "proxy_dataset_id": None}}
    room = h.make_room()
    assert pipeline.run(h.ask(house, verify="fail", **wish), room) == "failed"  # type: ignore[arg-type]
    request_id = h.ask(house, **wish)  # type: ignore[arg-type]
    assert pipeline.run(request_id, room) == "succeeded"
    certified = h.certificate(request_id)["limits"]
    assert certified == list(told(request_id)[1])
    assert asked_before(1) in certified
    assert (NOT_RUN["relearning"] in certified) == ("samples" not in wish)


@one_database
def test_the_page_of_a_published_request_is_that_of_the_certified_report(house: h.House) -> None:
    request_id = h.ask(house)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    with db.reading() as session:
        read = reporting.read(session, request_id)
    sound = page(read.report, read.about)
    assert ("This report, as the certificate has it (reportSha256)", read.about.certified_report) in sound.digests
    assert not any("not what was certified" in said for _, said in sound.facts)
    other = page({**read.report, "summary": "something else"}, read.about)
    assert "not what was certified" in dict(other.facts)["Certificate"]
    assert ("The report that the certificate names (reportSha256)", read.about.certified_report) in other.digests
    assert not any("as the certificate has it" in name for name, _ in other.digests)
