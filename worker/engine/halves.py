"""A network in two halves: an encoder that is trained, and a decoder that stays as it is, bit by bit.

    question -> encoder -> taps -> decoder -> answer

Training asks for the taps alone. So the decoder need not be on the device, and the teacher is a copy of the encoder.

Some networks have tensors that belong to neither half: both read them (a table of tokens that is the head's matrix too, the
embedding of time). A decoder that reads what is trained is not the decoder that it was, so these are frozen. The published code
of image-to-image unlearning trains them; `trains="release"` does as it does.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351: one fixed decoder for both
encoders is what its theorem assumes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from worker.engine.errors import BadInput, BadModel, Integrity

if TYPE_CHECKING:
    from worker.engine.family import Family

Trains = Literal["encoder", "release", "all"]
"""The encoder; what the published code trains, which is the encoder and what both halves read; or the whole network."""

Half = Literal["encoder", "shared", "decoder"]

TRAINED: Mapping[Trains, frozenset[Half]] = {
    "encoder": frozenset({"encoder"}),
    "release": frozenset({"encoder", "shared"}),
    "all": frozenset({"encoder", "shared", "decoder"}),
}

Encode = Callable[..., list[Tensor]]
"""(network, *question) -> taps, each (B, …); reads no tensor of the decoder."""

Answer = Callable[..., Any]
"""(network, *question) -> what the whole network answers."""


class Halves(nn.Module):
    """A network, called for its taps, or with `whole=True` for its answer. Its tensors keep the names they have in `network`.

    Args:
        encoder: names of modules or tensors that are the encoder, dots and all.
        shared: names of those that both halves read. A tensor that has names in both halves is shared, too.
        encode, answer: plain functions; a copy of the halves calls the same ones with its own network.
        device: of the encoder. The decoder comes there when an answer is asked for, or when it is trained, and not before.

    Raises:
        BadModel: there is no encoder that could be trained, or no decoder.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        encoder: Sequence[str],
        shared: Sequence[str] = (),
        encode: Encode,
        answer: Answer,
        device: torch.device,
    ) -> None:
        super().__init__()
        # The very tables of the network: one set of tensors under one set of names, whichever of the two moves or changes it.
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = network.__dict__[table]
        self.__dict__["network"] = network  # no submodule: every tensor would have two names
        self._encode, self._answer, self.device = encode, answer, device
        self._half = _halves_by_name(network, encoder, shared)
        self._trainable = frozenset(n for n, p in network.named_parameters(remove_duplicate=False) if p.requires_grad)
        self._at_hand = False
        if not any(self._half[name] == "encoder" for name in self._trainable):
            raise BadModel("expected a network with an encoder that can be trained, found none")
        if "decoder" not in self._half.values():
            raise BadModel("expected a network with a decoder, which stays frozen, found an encoder alone")
        self.choose("encoder")

    # ------------------------------------------------------------------------------------------------------------- asking

    def forward(self, *question: Tensor, whole: bool = False) -> Any:
        """Taps, each (B, …), or the answer."""
        if not whole:
            return self._encode(self.network, *question)
        self.fetch()
        return self._answer(self.network, *question)

    def fetch(self) -> None:
        """Bring the decoder to the device."""
        if not self._at_hand:
            self._move({"decoder"})
            self._at_hand = True

    def train(self, mode: bool = True) -> Halves:
        """As every module; the network that is no submodule goes along."""
        self.network.train(mode)
        super().train(mode)
        return self

    # ----------------------------------------------------------------------------------------------------------- training

    def choose(self, trains: Trains) -> None:
        """Which tensors are trained from now on; what never had a gradient (tables of positions) never gets one.

        Raises: BadInput when what both halves read is to be trained and there is nothing of the kind.
        """
        chosen = TRAINED[trains]
        if trains == "release" and not any(self.half_of(name) == "shared" for name in self._trainable):
            raise BadInput("expected tensors that encoder and decoder both read for release_compat to train, found none")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in self._trainable and self.half_of(name) in chosen)
        # Where the decoder lies on another kind of device, the distributed wrapper must not even look at it.
        names = [name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*names, *(name for name, _ in self.named_buffers())]
        self._move({"encoder", "shared"})
        if "decoder" in chosen:
            self.fetch()

    def teacher(self) -> Halves:
        """A frozen copy, in eval mode, of what the taps need: it has no decoder, and is never asked for an answer."""
        left_out: dict[int, Any] = {id(piece): None for piece in self._pieces(self.network, "")}
        copied: Halves = copy.deepcopy(self, left_out)
        return copied.eval().requires_grad_(False)

    def take_tables(self, other: Halves) -> None:
        """Copy, from a network of the same architecture, the parameters that are never trained, such as tables of positions."""
        theirs = dict(other.named_parameters())
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name not in self._trainable:
                    parameter.copy_(theirs[name])

    def half_of(self, name: str) -> Half:
        """Of a tensor, by its name. Raises: KeyError."""
        return self._half[name]

    def frozen(self) -> dict[str, Tensor]:
        """All that training must not change, by name: parameters that are not trained, and buffers."""
        still = {name: p for name, p in self.named_parameters() if not p.requires_grad}
        return {**still, **dict(self.named_buffers())}

    def _move(self, halves: set[Half]) -> None:
        for prefix, owner in self.named_modules():
            for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
                if tensor is None or self.half_of(_dotted(prefix, name)) not in halves:
                    continue
                if isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.data.to(self.device)
                else:
                    owner._buffers[name] = tensor.to(self.device)

    def _pieces(self, module: nn.Module, prefix: str) -> Iterator[nn.Module | Tensor]:
        """The largest modules below, and single tensors, that are the decoder's alone."""
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and self.half_of(_dotted(prefix, name)) == "decoder":
                yield tensor
        for name, child in module.named_children():
            full = _dotted(prefix, name)
            inside = {half for tensor, half in self._half.items() if tensor.startswith(full + ".")}
            if inside == {"decoder"}:
                yield child
            else:
                yield from self._pieces(child, full)


def _halves_by_name(network: nn.Module, encoder: Sequence[str], shared: Sequence[str]) -> dict[str, Half]:
    """Every tensor's half, under all of its names."""
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    said: dict[str, Half] = {
        name: "shared" if _within(name, shared) else "encoder" if _within(name, encoder) else "decoder" for name in tensors
    }
    missing = [part for part in (*encoder, *shared) if not any(_within(name, [part]) for name in tensors)]
    if missing:
        raise BadModel(f"expected tensors in {missing[0]} of the network, found none")
    by_tensor: dict[int, set[Half]] = {}
    for name, tensor in tensors.items():
        by_tensor.setdefault(id(tensor), set()).add(said[name])
    return {name: said[name] if len(by_tensor[id(t)]) == 1 else "shared" for name, t in tensors.items()}


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


# ----------------------------------------------------------------------------------------------------- what must not change


def choose(family: Family, trains: Trains) -> None:
    """Which part of a network in two halves is trained; any other network is trained as it is. Raises: see `Halves.choose`."""
    if isinstance(family.module, Halves):
        family.module.choose(trains)


def digests(family: Family) -> dict[str, str]:
    """SHA-256 of every tensor that training must not change, by name; of a network in two halves, and what is beside it."""
    if not isinstance(family.module, Halves):
        return {}
    tensors = family.module.frozen()
    for part, network in getattr(family, "companions", {}).items():
        tensors |= {f"{part}/{name}": tensor for name, tensor in network.state_dict().items()}
    return {name: digest_of(name, tensor) for name, tensor in tensors.items()}


def require_unchanged(family: Family, before: Mapping[str, str]) -> None:
    """Raises: Integrity when a frozen tensor is not what it was."""
    after = digests(family)
    moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if moved:
        raise Integrity(
            f"expected {len(before)} frozen tensors as they were before training, found {len(moved)} changed, "
            f"the first of them {moved[0]}"
        )


def digest_of(name: str, tensor: Tensor) -> str:
    """SHA-256 over name, dtype, shape and bytes."""
    digest = hashlib.sha256(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
