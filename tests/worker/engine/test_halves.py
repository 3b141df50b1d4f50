"""A network in two halves: what is trained, what is not, and what no copy of the encoder needs."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.engine import halves
from worker.engine.errors import BadModel, Integrity
from worker.engine.halves import Halves

CPU = torch.device("cpu")


class Network(nn.Module):
    """A table that both halves read, a table of positions that is never trained, and one layer each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(5, 3)
        self.positions = nn.Parameter(torch.ones(3), requires_grad=False)
        self.body = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3)})
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.offset = nn.Parameter(torch.zeros(3))
        self.register_buffer("scale", torch.tensor(2.0))


def encode(network: Network, y_B: Tensor) -> list[Tensor]:
    return [network.body["encoder"](network.table(y_B) + network.positions)]


def answer(network: Network, y_B: Tensor) -> Tensor:
    return network.head(network.body["decoder"](encode(network, y_B)[0]) + network.offset) * network.scale


def split(network: nn.Module | None = None, **changes: Any) -> Halves:
    parts: dict[str, Any] = {
        "encoder": ("body.encoder", "positions", "table"),
        "encode": encode,
        "answer": answer,
        "device": CPU,
    }
    return Halves(network or Network(), **(parts | changes)).eval()


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


Y = torch.tensor([1, 4])


def test_each_choice_trains_what_it_says() -> None:
    module = split()
    encoder = {"body.encoder.weight", "body.encoder.bias"}
    assert trained(module) == encoder  # `table` is the head's matrix too, so both halves read it
    module.choose("release")
    assert trained(module) == encoder | {"table.weight"}
    module.choose("all")
    assert trained(module) == encoder | {"table.weight", "body.decoder.weight", "body.decoder.bias", "offset"}
    module.choose("encoder")
    assert trained(module) == encoder


def test_tensors_keep_the_names_that_they_have_in_the_network() -> None:
    network = Network()
    names = list(network.state_dict())
    assert list(split(network).state_dict()) == names
    assert module_and_network_are_one(split(network))


def module_and_network_are_one(module: Halves) -> bool:
    return all(a is b for a, b in zip(module.parameters(), module.network.parameters(), strict=True))


def test_a_gradient_reaches_the_encoder_alone() -> None:
    module = split()
    module(Y)[0].sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == trained(module)


def test_the_answer_goes_through_the_encoder() -> None:
    module = split()
    assert torch.equal(module(Y, whole=True), answer(module.network, Y))


def test_eval_mode_reaches_the_network() -> None:
    network = Network()
    module = split(network.train())
    assert not network.training
    assert module.train().network.training


def test_the_teacher_answers_as_its_original_did_and_has_no_decoder() -> None:
    module = split()
    teacher, before = module.teacher(), module(Y)[0].clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher(Y)[0], before)
    assert {name for name, _ in teacher.named_parameters()} == {
        "table.weight", "positions", "body.encoder.weight", "body.encoder.bias",
    }  # fmt: skip
    assert trained(teacher) == set()
    assert teacher.network.body["decoder"] is None
    assert module.network.body["decoder"] is not None


def test_the_teacher_and_every_copy_are_networks_of_their_own() -> None:
    module = split()
    for made in (module.teacher(), copy.deepcopy(module)):
        assert module_and_network_are_one(made)
        assert not {id(p) for p in made.parameters()} & {id(p) for p in module.parameters()}


def test_what_the_distributed_wrapper_is_to_leave_alone_is_what_is_frozen() -> None:
    module = split()
    everything = {name for name, _ in module.named_parameters(remove_duplicate=False)} | {"scale"}
    assert set(module._ddp_params_and_buffers_to_ignore) == everything - trained(module)


def test_the_decoder_stays_away_from_the_device_until_an_answer_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[set[str]] = []
    monkeypatch.setattr(Halves, "_move", lambda self, halves: moved.append(set(halves)))
    module = split()
    module(Y)
    module.teacher()(Y)
    assert moved == [{"encoder", "shared"}]
    module(Y, whole=True)
    module(Y, whole=True)
    assert moved == [{"encoder", "shared"}, {"decoder"}]
    split().choose("all")
    assert moved[2:] == [{"encoder", "shared"}, {"encoder", "shared"}, {"decoder"}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_decoder_is_on_the_host_until_an_answer_is_asked_for() -> None:
    module = split(device=torch.device("cuda"))

    def on_host() -> set[str]:
        return {name for name, t in [*module.named_parameters(), *module.named_buffers()] if not t.is_cuda}

    module(Y.cuda())[0].sum().backward()
    assert on_host() == {"body.decoder.weight", "body.decoder.bias", "offset", "scale"}
    assert module(Y.cuda(), whole=True).is_cuda
    assert on_host() == set()


def test_a_network_without_two_halves_is_refused() -> None:
    with pytest.raises(BadModel, match="an encoder alone"):
        split(encoder=("body", "positions", "table", "offset", "head", "scale"))
    with pytest.raises(BadModel, match="encoder that can be trained, found none"):
        split(encoder=("positions",))
    with pytest.raises(BadModel, match="expected tensors in missing of the network, found none"):
        split(encoder=("body.encoder", "missing"))


def of(module: nn.Module, **more: Any) -> Any:
    return SimpleNamespace(module=module, **more)


@pytest.mark.parametrize("name", ["body.decoder.bias", "table.weight", "positions", "scale"])
def test_a_frozen_tensor_that_moved_by_one_bit_is_found(name: str) -> None:
    family = of(split())
    before = halves.digests(family)
    halves.require_unchanged(family, before)
    tensor = dict(family.module.state_dict())[name].view(-1)
    tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0))
    with pytest.raises(Integrity, match=f"1 changed, the first of them {name}"):
        halves.require_unchanged(family, before)


def test_what_is_trained_may_move() -> None:
    family = of(split())
    before = halves.digests(family)
    with torch.no_grad():
        family.module.network.body["encoder"].weight.add_(1)
    halves.require_unchanged(family, before)
    assert not any(name.startswith("body.encoder") for name in before)


def test_companions_are_watched_too() -> None:
    tokenizer = nn.Linear(2, 2)
    family = of(split(), companions={"tokenizer": tokenizer})
    before = halves.digests(family)
    with torch.no_grad():
        tokenizer.bias[1] += 1
    with pytest.raises(Integrity, match="tokenizer/bias"):
        halves.require_unchanged(family, before)


def test_a_digest_tells_names_shapes_and_dtypes_apart() -> None:
    tensor = torch.zeros(4)
    seen = {
        halves.digest_of("a", tensor), halves.digest_of("b", tensor), halves.digest_of("a", tensor.view(2, 2)),
        halves.digest_of("a", tensor.int()), halves.digest_of("a", torch.zeros(4, dtype=torch.bfloat16)),
    }  # fmt: skip
    assert len(seen) == 5
    assert halves.digest_of("a", torch.tensor(1.0)) != halves.digest_of("a", torch.tensor(2.0))


def test_a_network_of_one_piece_has_nothing_to_watch() -> None:
    family = of(nn.Linear(2, 2))
    assert halves.digests(family) == {}
    halves.choose(family, "encoder")
    assert trained(family.module) == {"weight", "bias"}
