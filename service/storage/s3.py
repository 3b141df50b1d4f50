"""Objects in a bucket of an S3-compatible store.

Uploads go in parts, a few at a time, so that memory is bounded whatever a file's size. The SDK repeats what times out or gets
a 5xx, with growing pauses; a reader whose connection breaks goes on at its byte. Credentials are the SDK's own business
(environment, profile, instance role) and appear in no URL, no error and no log.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.files import CHUNK
from service.storage.errors import Missing, StoreRefused, StoreUnavailable
from service.storage.objects import Object

PART = 16 << 20
PARTS_AT_ONCE = 4
TRANSFER = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=PARTS_AT_ONCE)
"""At most PART × PARTS_AT_ONCE bytes in memory; the SDK enlarges parts of files that would need over 10,000 of them."""
TRIES = 5
FIRST_PAUSE = 0.2
PASSING = frozenset({408, 429})
FULL = 507
CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"})


class S3Objects:
    """A bucket, or a prefix of it, that nothing else writes to.

    Args:
        endpoint_url: of a store that is not Amazon's; empty: the SDK's own choice.
    """

    def __init__(self, bucket: str, prefix: str, endpoint_url: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        with _named("connecting"):
            session = boto3.Session()
            where = {
                "endpoint_url": endpoint_url or None,
                # stores of one's own have no regions, but signatures need one
                "region_name": session.region_name or ("us-east-1" if endpoint_url else None),
            }
            self._client = session.client("s3", config=_config(endpoint_url), **where)
            hasty = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
            self._hasty = session.client("s3", config=_config(endpoint_url).merge(hasty), **where)

    def write(self, path: Path, key: str) -> None:
        with path.open("rb") as source, _named("writing"):
            self._client.upload_fileobj(source, self._bucket, self._prefix + key, Config=TRANSFER)

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in (409, 412):  # 409: somebody else creates it at this moment
                return False
            raise _translated("writing", error) from error
        except BotoCoreError as error:
            raise _translated("writing", error) from error
        return True

    def open(self, key: str) -> IO[bytes]:
        return io.BufferedReader(_Reader(self, key, self.stat(key).size), CHUNK)

    def stat(self, key: str) -> Object:
        with _named("reading"):
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        return Object(key, int(found["ContentLength"]), found["LastModified"], found["ETag"])

    def move(self, written: Object, key: str) -> None:
        """A copy on the server, of exactly the object that was read back, then a deletion: a bucket has no rename."""
        self._copy(written.key, key, CopySourceIfMatch=written.tag)
        if self.stat(key).size != written.size:
            raise StoreUnavailable("publishing: the store made a copy of another length")
        self.delete(written.key)

    def touch(self, key: str) -> None:
        self._copy(key, key, MetadataDirective="REPLACE")

    def _copy(self, source: str, target: str, **conditions: str) -> None:
        origin = {"Bucket": self._bucket, "Key": self._prefix + source}
        with _named("publishing"):  # in parts where the object is larger than one copy may be
            self._client.copy(origin, self._bucket, self._prefix + target, ExtraArgs=conditions, Config=TRANSFER)

    def delete(self, key: str) -> None:
        with _named("deleting"):
            self._hasty.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def list(self, prefix: str) -> Iterator[Object]:
        pages = self._client.get_paginator("list_objects_v2")
        with _named("listing"):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield Object(key, int(found["Size"]), found["LastModified"], found.get("ETag", ""))

    def abort_unfinished(self, before: datetime, *, dry_run: bool) -> int:
        old = 0
        pages = self._client.get_paginator("list_multipart_uploads")
        with _named("listing"):
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}incoming/"):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"] >= before:
                        continue
                    old += 1
                    if not dry_run:
                        name = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                        with suppress(Missing), _named("deleting"):  # completed or aborted since
                            self._client.abort_multipart_upload(Bucket=self._bucket, **name)
        return old

    def link(self, key: str, *, seconds: int, name: str, media_type: str) -> str | None:
        asked = {
            "Bucket": self._bucket,
            "Key": self._prefix + key,
            "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
            "ResponseContentType": media_type,
            "ResponseCacheControl": "private, max-age=31536000, immutable",
        }
        with _named("signing a link"):
            return str(self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds))

    def body(self, key: str, begin: int) -> Any:
        """The object's bytes from one on, as the SDK streams them."""
        with _named("reading"):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={begin}-")
        return answer["Body"]


class _Reader(io.RawIOBase):
    """One object, read forward; asked for again at its byte after a seek or a broken connection."""

    def __init__(self, objects: S3Objects, key: str, size: int) -> None:
        self._objects, self._key, self._size = objects, key, size
        self._at = 0
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if begin + offset != self._at:
            self._drop()
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not len(view):
            return 0
        data = self._read(min(len(view), self._size - self._at))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        for again in range(TRIES):
            if again:
                self._drop()
                time.sleep(FIRST_PAUSE * 2 ** (again - 1))
            try:
                self._body = self._body or self._objects.body(self._key, self._at)
                data: bytes = self._body.read(count)
            except BotoCoreError:
                continue
            if data:
                return data
        raise StoreUnavailable("reading: the connection broke, again and again")

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _config(endpoint_url: str) -> Config:
    return Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=32,
        # we read back and hash ourselves; not every store knows the newer checksum headers
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of the SDK as errors of the store. Their text is a code or a class: URLs may hold signatures."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise _translated(what, error) from error


def _translated(what: str, error: ClientError | BotoCoreError) -> Exception:
    if not isinstance(error, ClientError):
        kind = StoreRefused if type(error).__name__ in CREDENTIALS else StoreUnavailable
        return kind(f"{what}: {type(error).__name__}")
    code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
    if status == 404 and code != "NoSuchBucket":
        return Missing(f"{what}: there is no such object")
    passing = (status >= 500 and status != FULL) or status in PASSING
    return (StoreUnavailable if passing else StoreRefused)(f"{what}: {code or status}")


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
