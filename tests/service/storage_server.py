"""A real HTTP server that speaks S3, on a free port, in this process; and a bucket in it for each test."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

REGION, KEY, SECRET = "us-east-1", "expunge-tests", "a-secret-that-no-log-may-hold"


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def client(url: str) -> Any:
    """Straight to the server, past our own code."""
    return boto3.client(
        "s3", endpoint_url=url, region_name=REGION, aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )  # fmt: skip


def new_bucket(url: str) -> str:
    name = f"expunge-{uuid.uuid4().hex[:12]}"
    client(url).create_bucket(Bucket=name)
    return name
