"""What ended a stage: the losses of a peer are told from every other error, and only where there are peers."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from worker.engine.errors import BadModel, failure_of


@pytest.mark.parametrize(
    "error",
    [
        dist.DistError("x"),
        dist.DistBackendError("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"),
        dist.DistNetworkError("The client socket has timed out after 600000ms"),
        dist.DistStoreError("wait timeout"),
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:28371"),
        RuntimeError("[gloo/transport/tcp/pair.cc:542] Read error [127.0.0.1]:3201: Connection reset by peer"),
        RuntimeError("[gloo/transport/tcp/pair.cc:462] writev [127.0.0.1]:3201: Broken pipe"),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete"),
        RuntimeError("NCCL communicator was aborted on rank 1."),
    ],
)
def test_a_collective_that_misses_a_peer_is_a_lost_rank_where_there_are_ranks_to_lose(error: RuntimeError) -> None:
    failure = failure_of(error, world=2)
    assert (failure.code, failure.retryable) == ("rank_lost", True)
    assert failure.message == "expected 2 ranks to answer, one no longer does"
    assert failure_of(error).code == "internal"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "internal"),
        (ValueError("Connection closed by peer"), "internal"),
        (NotImplementedError("no NCCL here"), "internal"),
        (RuntimeError("op.preamble.length <= op.nbytes. 128 vs 64"), "internal"),  # ranks that disagree: a fault of ours
        (BadModel("timed out"), "bad_input"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_any_other_error_is_no_lost_rank(error: Exception, code: str) -> None:
    assert failure_of(error, world=2).code == code
