"""Without access control: what was before, and not one step off the loopback."""

from __future__ import annotations

from fastapi.testclient import TestClient

from service.app import create_app
from service.audit.leaves import LOCAL
from service.config import Settings
from tests.support import code_of, one_database


def test_the_local_caller_needs_no_key_and_a_key_changes_nothing(client: TestClient) -> None:
    assert client.get("/models").status_code == 200
    assert client.get("/models", headers={"Authorization": "Bearer nonsense"}).status_code == 200
    made = client.post("/projects", json={"id": "b"})
    assert (made.status_code, made.json()["created_by"]) == (201, str(LOCAL))


@one_database
def test_an_app_that_somebody_bound_to_another_address_serves_nobody(database: str) -> None:
    """`uvicorn --host 0.0.0.0` goes around the command that refuses it."""
    for address, status in (("192.0.2.1", 401), ("127.0.0.1", 200), ("[::1]", 200)):
        reached = TestClient(create_app(Settings()), base_url=f"http://{address}")
        assert reached.get("/healthz").status_code == status, address
    assert code_of(TestClient(create_app(Settings()), base_url="http://192.0.2.1").get("/models")) == "unauthenticated"
    contained = TestClient(create_app(Settings(bind_in_container=True)), base_url="http://192.0.2.1")
    assert contained.get("/healthz").status_code == 200
