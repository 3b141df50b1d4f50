"""Random numbers on their way to a device: the host keeps those that it decides on."""

from __future__ import annotations

import pytest
import torch

from worker.engine.family import Draw

CPU = torch.device("cpu")


def test_on_the_cpu_nothing_is_kept_twice() -> None:
    drawn = Draw({"t": torch.arange(4)})
    there = drawn.to(CPU)
    assert there["t"] is drawn["t"]
    assert there.host == {}
    assert there.on_host("t") is drawn["t"]


def test_rows_are_cut_of_both() -> None:
    part = Draw({"t": torch.arange(4)}, {"t": torch.arange(4)}).part(slice(1, 3))
    assert part["t"].tolist() == part.on_host("t").tolist() == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_host_keeps_what_it_sent() -> None:
    drawn = Draw({"t": torch.arange(4), "drop": torch.zeros(4, dtype=torch.bool)})
    there = drawn.to(torch.device("cuda")).part(slice(2, 4))
    assert there["t"].is_cuda
    assert there["t"].tolist() == [2, 3]
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert there.on_host("t").tolist() == [2, 3]
        drawn.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
