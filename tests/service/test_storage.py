"""The store: what has a name in it is whole. One suite for folders and buckets."""

from __future__ import annotations

import hashlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service import db, failpoints
from service.config import Settings
from service.storage import Corrupt, Missing, Store, StoreRefused, StoreUnavailable, get_store, s3
from tests.service.storage_server import SECRET, client

CONTENT = b"some bytes" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KINDS = ["file", "s3"]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return Store((tmp_path / "a store").as_uri())
    bucket, url = request.getfixturevalue("s3_bucket"), request.getfixturevalue("s3_url")
    return Store(f"s3://{bucket}/some/prefix", endpoint_url=url)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("EXPUNGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EXPUNGE_ALLOW_FAILPOINTS", "1")
    db.reset()
    failpoints.reset()
    return monkeypatch


@pytest.fixture(autouse=True)
def _settings_are_read_again() -> None:
    db.reset()


def _damage(store: Store, tmp_path: Path, content: bytes = b"rot") -> None:
    """Other bytes under the digest, past all checks."""
    rotten = tmp_path / "rotten"
    rotten.write_bytes(content)
    store._objects.write(rotten, "incoming/rotten")
    store._objects.move(store._objects.stat("incoming/rotten"), store._key(DIGEST))


def _keys(store: Store) -> list[str]:
    return sorted(found.key for prefix in ("incoming/", "sha256/") for found in store._objects.list(prefix))


KEY = f"sha256/{DIGEST[:2]}/{DIGEST}"


def test_what_is_put_is_there_under_its_digest(store: Store, source: Path) -> None:
    assert not store.exists(DIGEST)
    entry = store.put(source)
    assert (entry.path, entry.size, entry.sha256) == ("source.bin", len(CONTENT), DIGEST)
    assert store.exists(DIGEST)
    assert store.size(DIGEST) == len(CONTENT)
    with store.open(DIGEST) as stream:
        stream.seek(5)
        assert stream.read(10) == CONTENT[5:15]
        stream.seek(-3, io.SEEK_END)
        assert stream.read() == CONTENT[-3:]
        stream.seek(0)
        assert stream.read() == CONTENT
    assert _keys(store) == [KEY]  # nothing temporary is left
    assert [digest for digest, _ in store.objects()] == [DIGEST]


def test_an_empty_file_is_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    entry = store.put(tmp_path / "empty")
    assert store.size(entry.sha256) == 0
    with store.open(entry.sha256) as stream:
        assert stream.read() == b""


def test_putting_twice_and_at_once_ends_in_one_object(store: Store, source: Path) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert {entry.sha256 for entry in pool.map(lambda _: store.put(source), range(16))} == {DIGEST}
    assert _keys(store) == [KEY]


def test_putting_again_makes_it_young_again(store: Store, source: Path) -> None:
    store.put(source)
    before = store.stat(DIGEST).modified
    touched = threading.Event()
    touched.wait(1.1)  # S3 dates objects by the second
    store.put(source)
    assert store.stat(DIGEST).modified > before
    assert datetime.now(UTC) - store.stat(DIGEST).modified < timedelta(minutes=1)


def test_putting_again_heals_an_object_that_has_rotted(store: Store, source: Path, tmp_path: Path) -> None:
    store.put(source)
    _damage(store, tmp_path)
    store.put(source)
    with store.open(DIGEST) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("arrives", [CONTENT[:-1], CONTENT[:-1] + b"\0"])
def test_a_write_that_does_not_read_back_gets_no_name(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrives: bytes
) -> None:
    (tmp_path / "other").write_bytes(arrives)
    honest = store._objects.write
    monkeypatch.setattr(store._objects, "write", lambda _path, key: honest(tmp_path / "other", key))
    with pytest.raises(Corrupt):
        store.put(source)
    assert not store.exists(DIGEST)
    assert _keys(store) == []


def test_what_is_not_there_is_missing(store: Store) -> None:
    for missing in (DIGEST, "../../etc/passwd", "A" * 64, ""):
        with pytest.raises(Missing):
            store.open(missing)
        with pytest.raises(Missing):
            store.size(missing)
    assert store.exists(DIGEST) is False
    store.delete(DIGEST)  # and deleting it again is no error


@pytest.mark.parametrize(
    ("point", "failure", "kind"),
    [
        ("store.write", "full", StoreRefused),
        ("store.write", "read_only", StoreRefused),
        ("store.write", "away", StoreUnavailable),
        ("store.publish", "refused", StoreRefused),
        ("store.publish", "full", StoreRefused),
    ],
)
def test_a_failing_store_has_a_named_error_and_nothing_half_published(
    store: Store, source: Path, armed: pytest.MonkeyPatch, point: str, failure: str, kind: type[Exception]
) -> None:
    armed.setenv("EXPUNGE_FAILPOINTS", f"{point}={failure}*1")
    with pytest.raises(kind):
        store.put(source)
    assert _keys(store) == []
    assert store.put(source).sha256 == DIGEST  # once the cause is gone, it works


def test_failpoints_need_the_setting(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_FAILPOINTS", "store.write=full")
    assert store.put(source).sha256 == DIGEST


@pytest.mark.parametrize("rule", ["store.wirte=full", "store.write=explode"])
def test_a_misspelt_failpoint_is_no_silent_success(store: Store, source: Path, armed: pytest.MonkeyPatch, rule: str) -> None:
    armed.setenv("EXPUNGE_FAILPOINTS", rule)
    with pytest.raises(failpoints.BadFailpoint):
        store.put(source)


def test_a_mark_is_made_once(store: Store) -> None:
    for _ in range(2):
        store.sign_in("one")
    assert store.deployments() == {"one"}


# ------------------------------------------------------------------------------------------------------------- buckets


@pytest.fixture
def bucket_store(s3_bucket: str, s3_url: str) -> Store:
    return Store(f"s3://{s3_bucket}/prefix", endpoint_url=s3_url)


def test_a_large_file_goes_in_parts_and_in_bounded_memory(
    bucket_store: Store, s3_bucket: str, s3_url: str, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (40 * 4096))  # 40 MiB
    entry = bucket_store.put(large)
    found = client(s3_url).head_object(Bucket=s3_bucket, Key=f"prefix/sha256/{entry.sha256[:2]}/{entry.sha256}")
    assert found["ContentLength"] == 40 << 20
    assert s3.TRANSFER.max_concurrency * s3.TRANSFER.multipart_chunksize <= 64 << 20
    with bucket_store.open(entry.sha256) as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256


def test_nothing_lies_outside_the_prefix(bucket_store: Store, source: Path, s3_bucket: str, s3_url: str) -> None:
    bucket_store.put(source)
    (found,) = client(s3_url).list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert found["Key"] == f"prefix/{KEY}"


def test_no_bucket_is_a_refusal(s3_bucket: str, s3_url: str, source: Path) -> None:
    with pytest.raises(StoreRefused, match="NoSuchBucket"):
        Store("s3://there-is-no-such-bucket", endpoint_url=s3_url).put(source)


def test_a_link_reads_one_object_and_holds_no_secret(bucket_store: Store, source: Path) -> None:
    bucket_store.put(source)
    url = bucket_store.link(DIGEST, seconds=60, name="ä model.bin", media_type="application/octet-stream")
    assert url is not None
    assert SECRET not in url
    import httpx2

    answer = httpx2.get(url)
    assert answer.content == CONTENT
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''%C3%A4%20model.bin"


class Flaky(BaseHTTPRequestHandler):
    """One object of `CONTENT`: `answers` says what comes before the good answer."""

    answers: list[int | str]
    seen: list[str | None]

    def do_HEAD(self) -> None:
        self.respond(CONTENT[:0], len(CONTENT), 200)

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Range"))
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        match self.answers.pop(0) if self.answers else "good":
            case "cut":
                self.respond(CONTENT[begin : begin + 3000], len(CONTENT) - begin, 206)
                self.close_connection = True
            case "good":
                self.respond(CONTENT[begin:], len(CONTENT) - begin, 206)
            case status:
                self.respond(b"", 0, int(status))

    do_PUT = do_POST = lambda self: self.respond(b"", 0, int(self.answers[0]))

    def respond(self, body: bytes, length: int, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Wed, 01 Jul 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> object:
    Flaky.answers, Flaky.seen = [], []
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr(s3, "FIRST_PAUSE", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Store("s3://bucket/prefix", endpoint_url=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_5xx_and_a_broken_connection_are_tried_again_from_the_byte(flaky: Store) -> None:
    Flaky.answers = [503, 500, "cut", "cut"]
    with flaky.open(DIGEST) as stream:
        assert stream.read() == CONTENT
    assert Flaky.seen == ["bytes=0-"] * 3 + ["bytes=3000-", "bytes=6000-"]


def test_a_store_that_stays_away_is_unavailable(flaky: Store, source: Path) -> None:
    Flaky.answers = [503] * 100
    with pytest.raises(StoreUnavailable), flaky.open(DIGEST) as stream:
        stream.read()
    assert len(Flaky.seen) == s3.TRIES


@pytest.mark.parametrize(("status", "kind"), [(403, StoreRefused), (507, StoreRefused), (503, StoreUnavailable)])
def test_a_refused_write_is_named(flaky: Store, status: int, kind: type[Exception], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not there yet")
    Flaky.answers = [status] * 100
    with pytest.raises(kind):
        flaky._objects.write(other, "incoming/x")


def test_nobody_there_is_unavailable(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    with pytest.raises(StoreUnavailable):
        Store("s3://bucket", endpoint_url="http://127.0.0.1:9").exists(DIGEST)


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_settings_name_the_store(s3_bucket: str, s3_url: str, source: Path) -> None:
    settings = Settings(store_url=f"s3://{s3_bucket}/p", store_endpoint_url=s3_url)
    assert get_store(settings).put(source).sha256 == DIGEST


@pytest.mark.parametrize(
    "wrong",
    [
        {"store_url": "s3://key:secret@bucket/x"},
        {"store_url": "https://bucket/x"},
        {"store_url": "s3://bucket/x?secret=1"},
        {"store_url": "s3://bucket", "store_endpoint_url": "http://key:secret@host"},
        {"store_url": "s3://bucket", "store_endpoint_url": "host:9000"},
    ],
)
def test_urls_hold_no_credentials(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="store"):
        Settings(**wrong)


def test_no_log_holds_the_secret(bucket_store: Store, source: Path, s3_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        bucket_store.put(source)
        with pytest.raises(StoreRefused) as refused:
            Store("s3://there-is-no-such-bucket", endpoint_url=s3_url).put(source)
    assert SECRET not in caplog.text + str(refused.value)
