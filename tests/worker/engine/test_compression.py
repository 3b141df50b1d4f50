"""Rounded and pruned weights, beside torch's own quantiser and pruner."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from worker.engine.compression import COMPRESSIONS, compress


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.Embedding(4, 6))
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    net[1].num_batches_tracked.fill_(300)  # bfloat16 has no 300
    return net


@pytest.mark.parametrize(("how", "top"), [("int8", 127), ("int4", 7)])
def test_integers_are_those_of_torchs_quantiser_row_by_row(how: str, top: int) -> None:
    net, before = network(), network()
    compress(net, how)
    for after, weight in ((net[i].weight, before[i].weight) for i in (0, 4, 5)):
        scale = weight.detach().flatten(1).abs().amax(1) / top
        zero = torch.zeros(len(weight), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(weight.detach(), scale, zero, 0, -top, top)
        torch.testing.assert_close(after.detach(), expected)
        assert max(len(row.unique()) for row in after.flatten(1)) <= 2 * top + 1


def test_the_largest_of_a_row_is_kept_and_others_go_to_the_nearest_step() -> None:
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[127.0, 63.4, -1.6], [0.0, 0.0, 0.0]])
    compress(layer, "int8")
    assert layer.weight.tolist() == [[127.0, 63.0, -2.0], [0.0, 0.0, 0.0]]  # steps of 1; a row of zeros is no division by 0
    layer.weight.data = torch.tensor([[14.0, 3.1, -0.9], [-7.0, 3.4, 0.6]])
    compress(layer, "int4")
    assert layer.weight.tolist() == [[14.0, 4.0, 0.0], [-7.0, 3.0, 1.0]]  # steps of 2, and of 1


@pytest.mark.parametrize("how", ["int8", "int4", "prune30"])
def test_biases_and_what_normalises_are_left_alone(how: str) -> None:
    net, before = network(), network()
    compress(net, how)
    for name, value in before.state_dict().items():
        if value.ndim < 2:
            assert torch.equal(net.state_dict()[name], value), name


@pytest.mark.parametrize(("how", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_sixteen_bits_are_those_of_a_network_saved_in_them_and_read_back(how: str, dtype: torch.dtype) -> None:
    net, before = network(), network()
    compress(net, how)
    expected = before.to(dtype).float().state_dict()
    assert net[0].weight.dtype == torch.float32
    for name, value in net.state_dict().items():  # statistics of BatchNorm, too; the count of batches is no float
        assert torch.equal(value, expected[name]), name
    assert net[1].num_batches_tracked == 300
    assert not torch.equal(net[1].running_var, network()[1].running_var)


@pytest.mark.parametrize(("how", "share"), [("prune10", 0.1), ("prune30", 0.3), ("prune50", 0.5)])
def test_the_smallest_of_all_layers_together_are_pruned_as_torch_prunes(how: str, share: float) -> None:
    net, before = network(), network()
    compress(net, how)
    layers = [before[i] for i in (0, 4, 5)]
    count = int(share * sum(layer.weight.numel() for layer in layers))
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=count)
    for i in (0, 4, 5):
        assert torch.equal(net[i].weight, before[i].weight)


def test_nothing_is_done_where_nothing_is_asked_and_every_other_changes_something() -> None:
    for how in COMPRESSIONS:
        net = network()
        compress(net, how)
        same = all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), network().state_dict().values(), strict=True))
        assert same is (how == "none")
