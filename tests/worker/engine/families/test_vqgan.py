"""VQ-GAN tokens and masked transformers: the tokenizer's own tokens, asked once; both layouts; and only folders that fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.vqgan import (
    CODES,
    SIDE,
    tiny_text_encoder,
    tiny_transformer,
    tiny_uvit,
    tiny_vq,
    transformer,
    write_amused,
    write_model,
)
from tests.worker.engine.unlearning_job import begin, make_job, params_of, write_spec
from worker.contract import MaskSpec, Sampling
from worker.engine import amused, corruption, halves, token_transformer, tokens
from worker.engine.errors import BadInput, BadModel, Diverged
from worker.engine.families import vqgan
from worker.engine.families.vqgan import MaskedTokens
from worker.engine.family import Draw
from worker.engine.token_transformer import TransformerConfig
from worker.engine.tokens import schedule

CPU = torch.device("cpu")
LENGTH = 16
LAYOUTS: dict[str, Callable[[Path], None]] = {"ours": write_model, "amused": write_amused}

each = pytest.mark.parametrize("layout", LAYOUTS)


def load(folder: Path) -> MaskedTokens:
    return MaskedTokens.load(folder, labels=NAMES, device=CPU)


def family_of(root: Path, layout: str = "ours") -> MaskedTokens:
    LAYOUTS[layout](root / "base")
    return load(root / "base")


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def asked(family: MaskedTokens, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Draw]:
    draw = family.draw(count, (1, SIDE, SIDE), torch.Generator().manual_seed(seed), label_drop=0.0)
    return family.prepare(family.hold(images(count)), draw), torch.zeros(count, dtype=torch.int64), draw


def hooked(module: nn.Module) -> tuple[list[Any], Any]:
    seen: list[Any] = []
    return seen, module.register_forward_hook(lambda _module, _args, out: seen.append(out))


# ----------------------------------------------------------------------------------------------------------- the two halves


def test_taps_are_those_of_a_full_forward_pass(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    question = family.question(*asked(family))
    seen, hook = hooked(family.module.network.norm)
    family.module(*question, whole=True)
    hook.remove()
    (tap,) = family.encode(question)
    assert tap.shape == (3, 1 + LENGTH // 2, 16)  # half of the tokens are kept, and there is one before them
    assert torch.equal(tap, seen[0])


def test_taps_and_answer_of_amused_are_those_of_diffusers(tmp_path: Path) -> None:
    family = family_of(tmp_path, "amused")
    shown_BL, prompt, pooled, size = family.question(*asked(family))
    network = family.module.network
    seen, hook = hooked(network.transformer_layers[-1])
    logits = network(shown_BL.view(-1, 4, 4), encoder_hidden_states=prompt, pooled_text_emb=pooled, micro_conds=size)
    hook.remove()
    (tap,) = family.encode((shown_BL, prompt, pooled, size))
    assert torch.equal(tap, seen[0])
    answer = amused.answer(network, shown_BL, prompt, pooled, size)
    assert torch.equal(answer, logits.permute(0, 2, 3, 1).reshape(3, LENGTH, CODES))


def test_amused_that_samples_down_has_a_tap_of_fewer_tokens(tmp_path: Path) -> None:
    write_amused(tmp_path, tiny_uvit(downsample=True, upsample=True))
    family = load(tmp_path)
    question = family.question(*asked(family))
    assert family.encode(question)[0].shape == (3, LENGTH // 4, 16)
    assert family.module(*question, whole=True).shape == (3, LENGTH, CODES)


def test_amused_is_asked_as_its_pipeline_asks_with_the_empty_prompt(tmp_path: Path) -> None:
    from diffusers import AmusedScheduler, UVit2DModel
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    family = family_of(tmp_path, "amused")
    base = tmp_path / "base"
    parts = {
        "vqvae": VQModel.from_pretrained(base / "vqvae"),
        "transformer": UVit2DModel.from_pretrained(base / "transformer"),
        "text_encoder": CLIPTextModelWithProjection.from_pretrained(base / "text_encoder").eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(base / "tokenizer"),
        "scheduler": AmusedScheduler.from_pretrained(base / "scheduler"),
    }
    heard: list[Any] = []
    parts["transformer"].register_forward_pre_hook(lambda _module, args, given: heard.append((args, given)), with_kwargs=True)
    pipeline = AmusedPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("", num_inference_steps=1, guidance_scale=0.0, output_type="latent")
    (args, given), (_, *beside) = heard[0], family.question(*asked(family, 1))
    assert torch.equal(args[0], torch.full((1, 4, 4), family.predictor.mask_id))
    assert torch.allclose(beside[0], given["encoder_hidden_states"], atol=1e-6)
    assert torch.allclose(beside[1], given["pooled_text_emb"], atol=1e-6)
    assert torch.equal(beside[2], given["micro_conds"].float())


@each
def test_the_encoder_is_told_nothing_of_a_hidden_token(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    id_BL, y, draw = asked(family)
    shown_BL, *_ = family.question(id_BL, y, draw)
    is_hidden_BL = shown_BL == family.predictor.mask_id
    count_B = is_hidden_BL.sum(dim=1)
    assert bool(((count_B >= 1) & (count_B < LENGTH)).all())
    assert torch.equal(shown_BL[~is_hidden_BL], id_BL[~is_hidden_BL])
    others_BL = torch.where(is_hidden_BL, (id_BL + 1) % CODES, id_BL)
    again = family.question(others_BL, y, draw)
    assert all(torch.equal(a, b) for a, b in zip(family.question(id_BL, y, draw), again, strict=True))


def test_what_the_encoder_is_not_given_is_hidden_and_of_one_size(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    shown_BL, kept_BK = family.question(*asked(family, 64))
    assert kept_BK.shape == (64, LENGTH // 2)
    assert bool((kept_BK.diff(dim=1) > 0).all())
    left_out_BL = torch.ones_like(shown_BL, dtype=torch.bool).scatter(1, kept_BK, False)
    assert bool((shown_BL[left_out_BL] == CODES).all())
    # Some more are hidden of most images; those come to the encoder as the mask.
    assert int((shown_BL == CODES).sum(1).min()) >= LENGTH // 2
    assert int((shown_BL == CODES).sum(1).max()) > LENGTH // 2


def test_the_decoder_has_a_vector_of_its_own_for_hidden_tokens() -> None:
    network = tiny_transformer()
    shown_1L, kept_1K = torch.arange(LENGTH)[None].clone(), torch.arange(8)[None]
    shown_1L[0, 8:] = CODES
    before = token_transformer.answer(network, shown_1L, kept_1K)
    with torch.no_grad():
        network.embed.words.weight[CODES].add_(1)  # the encoder's word for the mask, of which it was given none
    assert torch.equal(before, token_transformer.answer(network, shown_1L, kept_1K))
    with torch.no_grad():
        network.decoder_mask.add_(1)
    assert not torch.allclose(before, token_transformer.answer(network, shown_1L, kept_1K))


def test_the_decoder_does_not_see_where_a_hidden_token_came_to_the_encoder_as_the_mask() -> None:
    """What the encoder makes of the mask's word reaches the decoder through visible tokens, not in the hidden one's place."""
    network = tiny_transformer()
    for block in network.blocks:  # no attention in the encoder: a token is told of itself alone
        nn.init.zeros_(block.out.weight)
    shown_1L, kept_1K = torch.arange(LENGTH)[None].clone(), torch.arange(LENGTH)[None]
    shown_1L[0, 8:] = CODES
    before = token_transformer.answer(network, shown_1L, kept_1K)
    with torch.no_grad():
        network.embed.words.weight[CODES].mul_(-2)
    assert torch.equal(before, token_transformer.answer(network, shown_1L, kept_1K))


# ------------------------------------------------------------------------------------------------------------------ tokens


@each
def test_what_is_held_is_the_tokenizer_s_own_ids_in_two_bytes(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    held = family.hold(images(5))
    assert (held.shape, held.dtype) == ((5, LENGTH), torch.int16)
    vq = VQModel.from_pretrained(tmp_path / "base" / "vqvae").eval()
    x = images(5) / 255 if layout == "amused" else images(5) / 127.5 - 1
    with torch.no_grad():
        expected = vq.quantize(vq.encode(x).latents)[2][2].view(5, LENGTH)
    assert torch.equal(held.long(), expected)
    assert len(held.unique()) > 4  # a codebook in use, or the tests on it would see nothing


def test_many_codes_take_four_bytes(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_transformer(codebook_size=1 << 15), tiny_vq(num_vq_embeddings=1 << 15))
    assert load(tmp_path).tokenizer.held == torch.int16  # ids end at 32767
    write_model(tmp_path / "more", tiny_transformer(codebook_size=(1 << 15) + 1), tiny_vq(num_vq_embeddings=(1 << 15) + 1))
    family = load(tmp_path / "more")
    assert family.hold(images(1)).dtype == torch.int32


@pytest.mark.parametrize("norm_type", ["group", "spatial"])
def test_images_of_tokens_are_the_tokenizer_s(norm_type: str, tmp_path: Path) -> None:
    vq = tiny_vq(norm_type=norm_type, block_out_channels=(32, 32))  # diffusers has 32 groups in the spatial one
    write_model(tmp_path, vq=vq)
    family = load(tmp_path)
    with torch.no_grad():
        expected = (vq(images() / 127.5 - 1).sample + 1) * 127.5
    drawn = family.tokenizer.decode(family.hold(images()).long(), family.grid)
    assert (drawn - expected.clamp(0, 255)).abs().max() <= 0.51  # rounded


def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.3], "image_std": [0.2]}))
    vq = VQModel.from_pretrained(tmp_path / "vqvae").eval()
    with torch.no_grad():
        expected = vq.quantize(vq.encode((images() / 255 - 0.3) / 0.2).latents)[2][2].view(3, LENGTH)
    family = load(tmp_path)
    assert torch.equal(family.hold(images()).long(), expected)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0])
    filled = family.tokenizer.filled(images(1), hidden)
    assert bool((filled[0, 0, 2:6, 2:6] == round(0.3 * 255)).all())
    filled[0, 0, 2:6, 2:6] = images(1)[0, 0, 2:6, 2:6]
    assert torch.equal(filled, images(1))


@each
def test_training_asks_the_tokenizer_nothing_once_images_are_held(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of(tmp_path, layout)
    method.step(0)

    def asked_again(*_: object, **__: object) -> None:
        raise AssertionError("the tokenizer was asked")

    vq = method.run.family.tokenizer.vq
    for part in (vq.encoder, vq.quantize, vq.decoder):
        monkeypatch.setattr(part, "forward", asked_again)
    method.step(1)


@each
def test_noise_is_tokenised_noise_and_the_same_for_the_same_generator(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    torch.manual_seed(7)
    first = family.noise(5, (1, SIDE, SIDE), torch.Generator().manual_seed(1), scope="image")
    torch.manual_seed(8)
    again = load(tmp_path / "base").noise(5, (1, SIDE, SIDE), torch.Generator().manual_seed(1), scope="hole")
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert first.device == CPU
    other = family.noise(5, (1, SIDE, SIDE), torch.Generator().manual_seed(2), scope="image")
    assert not torch.equal(first, other)
    # As many codes as noise images that were made by hand: 0.5 + 0.5 N(0, 1), cut off.
    made = (0.5 + 0.5 * torch.randn(tokens.NOISES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(9))).clamp(0, 1)
    by_hand = family.hold((255 * made).round().to(torch.uint8)).long().flatten().bincount(minlength=CODES)
    pool = family.tokenizer.noises(family.grid).long().flatten().bincount(minlength=CODES)
    assert ((pool - by_hand).abs().sum() / by_hand.sum()) < 0.1


def test_mirroring_is_refused(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    with pytest.raises(BadInput, match="tokens are no mirrored tokens"):
        family.draw(2, (1, SIDE, SIDE), torch.Generator(), label_drop=0.0, augment="flip")


# ---------------------------------------------------------------------------------------------------------------- training


def test_the_share_of_hidden_tokens_is_normal_and_cut_off() -> None:
    config = transformer(sample_size=64).config  # 4096 tokens
    u_B = (torch.arange(20_000) + 0.5) / 20_000
    ratio_B = config.hidden(u_B) / config.length
    assert float(ratio_B.min()) == pytest.approx(0.5, abs=1e-3)
    assert float(ratio_B.max()) == pytest.approx(1.0, abs=1e-3)
    # N(0.55, 0.25) in [0.5, 1] is below 0.55 with (Phi(0) - Phi(-0.2)) / (Phi(1.8) - Phi(-0.2)) = 0.0793 / 0.5433.
    assert float((ratio_B <= 0.55).double().mean()) == pytest.approx(0.1459, abs=2e-3)
    assert int(config.hidden(torch.tensor([1 - 2**-24])).item()) <= config.length - 1
    assert config.dropped == 2048


def test_amused_hides_by_the_cosine() -> None:
    # cos(0) hides all but one that has to be left, cos(pi / 4) = 0.7071 of 16 is 11.3, cos(pi / 2) hides the one it has to.
    assert amused.hidden(16, torch.tensor([0.0, 0.5, 1.0])).tolist() == [15, 12, 1]


@each
def test_the_native_mask_names_the_mean_share(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    shown_BL, *_ = family.question(*asked(family, 512))
    mean = float((shown_BL == family.predictor.mask_id).double().mean())
    assert family.native.ratio == pytest.approx(mean, abs=0.02)


@each
def test_the_loss_is_the_cross_entropy_of_hidden_tokens(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    id_BL, y, draw = asked(family)
    question = family.question(id_BL, y, draw)
    with torch.no_grad():
        likely_BLV = family.module(*question, whole=True).log_softmax(-1)
        for i, loss in enumerate(family.loss(id_BL, y, draw).tolist()):
            terms = [-float(likely_BLV[i, n, id_BL[i, n]]) for n in range(LENGTH) if question[0][i, n] >= CODES]
            assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_the_loss_to_noise_has_noise_for_truth_and_the_image_for_context(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    id_BL, y, draw = asked(family)
    noise_BL = family.noise(3, (1, SIDE, SIDE), torch.Generator().manual_seed(3), scope="hole")
    assert noise_BL is not None
    noisy = Draw(draw.tensors | {"noise": noise_BL})
    logits_BLV = family.module(*family.question(id_BL, y, draw), whole=True)
    is_hidden_BL = family.question(id_BL, y, draw)[0] == CODES
    apart_BL = F.cross_entropy(logits_BLV.transpose(1, 2), noise_BL.long(), reduction="none")
    expected = (apart_BL * is_hidden_BL).sum(1) / is_hidden_BL.sum(1)
    assert torch.allclose(family.loss_to_noise(id_BL, y, noisy), expected)


def test_a_teacher_may_be_asked_about_other_images_under_the_same_mask(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    id_BL, y, draw = asked(family)
    other_BL = family.hold(255 - images()).long()
    apart = family.distance(id_BL, y, draw, teacher=family.module, instead=(other_BL, y))
    assert bool((apart > 0).all())
    assert not bool(family.distance(other_BL, y, draw, teacher=family.module, instead=(other_BL, y)).any())


@each
def test_new_weights_learn_from_the_plain_loss(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    module: Any = family.fresh(1)
    module.choose("all")
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    id_BL, y, draw = asked(family, 8)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = family.loss(id_BL, y, draw, module=module).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@each
def test_new_weights_know_nothing_of_codes_yet(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    loss = family.loss(*asked(family, 8), module=family.fresh(1)).mean()
    assert float(loss) == pytest.approx(math.log(CODES), rel=0.35)


# --------------------------------------------------------------------------------------------------------------- completing


@pytest.mark.parametrize(
    ("count", "steps", "left"),
    [
        (16, 4, [14, 11, 6, 0]),  # 16 cos(22.5, 45, 67.5 degrees) = 14.8, 11.3, 6.1
        (16, 1, [0]),
        (2, 6, [1, 0]),  # 2 cos(15, 30, 45, 60, 75 degrees) = 1.9, 1.7, 1.4, 1, 0.5: steps that uncover nothing are left out
        (1, 20, [0]),
    ],
)
def test_tokens_are_uncovered_by_the_cosine(count: int, steps: int, left: list[int]) -> None:
    assert [n for _, n in schedule(count, steps)] == left


@each
def test_hidden_tokens_are_drawn_over_steps_and_visible_ones_stay(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    hidden = corruption.masks(MaskSpec(kind="random_patch", ratio=0.5), family.grid, [0, 1])
    seen: list[Tensor] = []
    forward = family.module._answer

    def watch(network: Any, shown_BL: Tensor, *rest: Tensor) -> Tensor:
        seen.append(shown_BL.clone())
        return forward(network, shown_BL, *rest)

    family.module._answer = watch
    family.complete(images(2), hidden, [5, 6], sampling=Sampling(steps=4))
    mask_id = family.predictor.mask_id
    seen, again = seen[:4], seen[4:]  # one pass and another
    assert [(shown == mask_id).sum(1).tolist() for shown in seen] == [[8, 8], [7, 7], [5, 5], [3, 3]]  # 8 cos(…), cut
    assert torch.equal(seen[0] == mask_id, hidden.flatten(1))
    visible = family.tokenizer.tokenise(family.tokenizer.filled(images(2), hidden)).long()
    for before, after in pairwise(seen):
        assert torch.equal(after[~hidden.flatten(1)], visible[~hidden.flatten(1)])
        assert bool(((after == before) | (before == mask_id)).all())  # what is uncovered stays
    assert [(shown == mask_id).sum(1).tolist() for shown in again] == [[8, 8], [7, 7], [5, 5], [3, 3]]


def test_the_second_pass_sees_the_completed_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(tmp_path)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0, 0])
    monkeypatch.setattr(vqgan, "PASSES", 1)
    once = family.complete(images(2), hidden, [5, 6], sampling=Sampling(steps=2))
    monkeypatch.undo()
    seen: list[Tensor] = []
    tokenise = family.tokenizer.tokenise
    object.__setattr__(family.tokenizer, "tokenise", lambda given: seen.append(given) or tokenise(given))
    family.complete(images(2), hidden, [5, 6], sampling=Sampling(steps=2))
    assert torch.equal(seen[0], family.tokenizer.filled(images(2), hidden))
    assert torch.equal(seen[1], once)
    assert len(seen) == 2


@each
def test_the_seed_decides_what_is_drawn(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.5), family.grid, [0, 0, 0])
    same = images(1).expand(3, -1, -1, -1)
    first, second, third = family.complete(same, hidden, [5, 6, 5], sampling=Sampling(steps=3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_a_sure_network_is_followed(tmp_path: Path) -> None:
    """One code is certain everywhere: whatever the seed, it is what all hidden tokens become."""
    family = family_of(tmp_path)
    with torch.no_grad():
        family.module.network.head.bias[3] = 1e4
    hidden_BL = torch.zeros(1, LENGTH, dtype=torch.bool)
    hidden_BL[0, 4:9] = True
    everywhere = torch.arange(LENGTH)[None]
    id_BL = family.hold(images(1)).long()
    filled = tokens.filled_in(
        lambda shown: family.module(shown, everywhere, whole=True),
        id_BL, hidden_BL, 5, [1], steps=3, mask_id=CODES, temperature=6.0,
    )  # fmt: skip
    assert torch.equal(filled, torch.where(hidden_BL, 3, id_BL))


def test_ids_are_drawn_by_their_probability() -> None:
    logits_V = torch.tensor([0.5, 0.25, 0.25, 1e-9]).log()
    hidden_BL = torch.tensor([[True, False]]).expand(4000, -1)
    filled = tokens.filled_in(
        lambda shown: logits_V.expand(*shown.shape, 4),
        torch.zeros(4000, 2, dtype=torch.int64), hidden_BL, 1, range(4000), steps=1, mask_id=4, temperature=0.0,
    )  # fmt: skip
    share = filled[:, 0].bincount(minlength=4) / 4000
    assert share.tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0], abs=0.03)  # four standard deviations


def test_an_answer_that_is_no_number_is_named(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    with torch.no_grad():
        family.module.network.head.bias[0] = float("nan")
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.5), family.grid, [0])
    with pytest.raises(Diverged, match="NaN"):
        family.complete(images(1), hidden, [5], sampling=Sampling(steps=2))


# -------------------------------------------------------------------------------------------------------------- unlearning


def method_of(root: Path, layout: str = "ours", network: Any = None, **params: object) -> Any:
    job = make_job(root, family="vqgan", method="encoder_l2", params=params_of("encoder_l2", "vqgan") | params)
    if layout == "amused" or network is not None:
        spec = job.read_spec()
        shutil.rmtree(job.base)
        write_amused(job.base) if layout == "amused" else write_model(job.base, network)
        write_spec(job, family="vqgan", method="encoder_l2", params=spec.params)
    return begin(job)


def moved(method: Any) -> set[str]:
    """Halves of which a tensor moved over two steps, after all that must not move was found unmoved."""
    family = method.run.family
    before = {name: t.clone() for name, t in family.module.state_dict().items()}
    digests = halves.digests(family)
    assert any(name.startswith("vqvae/") for name in digests)
    for i in range(2):
        method.step(i)
    halves.require_unchanged(family, digests)
    after = family.module.state_dict()
    return {family.module.half_of(name) for name in before if not torch.equal(before[name], after[name])}


@each
def test_unlearning_moves_the_encoder_alone(layout: str, tmp_path: Path) -> None:
    assert moved(method_of(tmp_path, layout)) == {"encoder"}


def test_amused_s_shared_layers_are_trained_as_published_only_if_asked_for(tmp_path: Path) -> None:
    assert moved(method_of(tmp_path, "amused", release_compat=True)) == {"encoder", "shared"}


def test_a_tied_head_keeps_the_words_from_training_unless_the_published_way_is_asked_for(tmp_path: Path) -> None:
    network = tiny_transformer(tied_head=True)
    strict = method_of(tmp_path / "strict", network=network)
    assert strict.run.family.module.half_of("embed.words.weight") == "shared"
    assert moved(strict) == {"encoder"}
    assert moved(method_of(tmp_path / "release", network=network, release_compat=True)) == {"encoder", "shared"}


def test_another_text_encoder_is_another_frozen_prompt(tmp_path: Path) -> None:
    """Both halves of aMUSEd's network read what the prompt became: the encoder's bytes are not all that decides answers."""
    before = halves.digests(family_of(tmp_path, "amused"))
    text = tiny_text_encoder()
    with torch.no_grad():
        text.get_input_embeddings().weight.mul_(1.5)
    write_amused(tmp_path / "other", text=text)
    after = halves.digests(load(tmp_path / "other"))
    moved = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert moved == {"prompt"}


def test_words_of_their_own_are_the_encoder_s_and_nothing_is_shared(tmp_path: Path) -> None:
    method = method_of(tmp_path / "a")
    assert method.run.family.module.half_of("embed.words.weight") == "encoder"
    with pytest.raises(BadInput, match="expected tensors that encoder and decoder both read"):
        method_of(tmp_path / "b", release_compat=True)


def test_a_tied_head_answers_by_the_table_of_words() -> None:
    network = tiny_transformer(tied_head=True)
    shown_1L, kept_1K = torch.full((1, LENGTH), CODES), torch.arange(LENGTH)[None]
    before = token_transformer.answer(network, shown_1L, kept_1K)
    with torch.no_grad():
        network.embed.words.weight[2] *= 2  # code 2, which is nowhere in the question
    after = token_transformer.answer(network, shown_1L, kept_1K)
    assert (before != after).any(dim=1)[0].tolist() == [code == 2 for code in range(CODES)]
    assert not any(name.startswith("head.words") for name in network.state_dict())


@each
def test_what_is_saved_is_the_base_s_folder_with_the_transformer_s_weights(layout: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, layout)
    with torch.no_grad():
        next(p for p in family.module.parameters() if p.requires_grad).add_(0.5)
    family.save(tmp_path / "out", tmp_path / "base")
    changed = []
    for file in sorted(p for p in (tmp_path / "base").rglob("*") if p.is_file()):
        path = file.relative_to(tmp_path / "base")
        if file.read_bytes() != (tmp_path / "out" / path).read_bytes():
            changed.append(path.parent.as_posix())
            before, after = load_file(file), load_file(tmp_path / "out" / path)
            assert sum(not torch.equal(before[name], after[name]) for name in before) == 1
    assert changed == ["transformer"]


# ---------------------------------------------------------------------------------------------------------------- bad input


def test_images_that_are_no_whole_tokens_are_refused(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    with pytest.raises(BadInput, match=r"works on images \(1, 8, 8\) of 4x4 tokens of 2x2 pixels, found \(1, 9, 8\)"):
        family.hold(torch.zeros(1, 1, 9, 8, dtype=torch.uint8))
    with pytest.raises(BadInput, match="multiples of 2"):
        family.tokenizer.tokenise(torch.zeros(1, 1, 9, 8, dtype=torch.uint8))
    with pytest.raises(BadInput, match="1 channels"):
        family.tokenizer.tokenise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


PARTS = [("ours", "vqvae"), ("ours", "transformer"), ("amused", "vqvae"), ("amused", "transformer"), ("amused", "text_encoder")]


@pytest.mark.parametrize(("layout", "part"), PARTS)
def test_a_part_that_is_missing_is_named(layout: str, part: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    config = tmp_path / part / "config.json"
    text = config.read_text()
    config.unlink()
    with pytest.raises(BadModel, match=f"expected {part}/config.json in the model folder, found none"):
        load(tmp_path)
    config.write_text(text)
    next((tmp_path / part).glob("*.safetensors")).unlink()
    with pytest.raises(BadModel, match=rf"one .safetensors file in {part}/, found \[\]"):
        load(tmp_path)


@each
def test_pickles_and_weights_beside_the_parts_are_refused(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    (tmp_path / "vqvae" / "vqgan.ckpt").write_bytes(b"")
    with pytest.raises(BadModel, match=r"safetensors weights only, found vqvae/vqgan\.ckpt"):
        load(tmp_path)
    (tmp_path / "vqvae" / "vqgan.ckpt").unlink()
    (tmp_path / "whole.safetensors").write_bytes(b"")
    with pytest.raises(BadModel, match=r"found \['whole.safetensors'\]"):
        load(tmp_path)


def test_a_transformer_over_other_codes_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "a", tiny_transformer(codebook_size=CODES + 1))
    with pytest.raises(BadModel, match=f"over the tokenizer's {CODES} codes, found {CODES + 1}"):
        load(tmp_path / "a")
    write_amused(tmp_path / "b", tiny_uvit(codebook_size=CODES - 1))
    with pytest.raises(BadModel, match=f"over the tokenizer's {CODES} codes, found {CODES - 1}"):
        load(tmp_path / "b")


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("transformer/config.json", {"model_type": "bert"}, "model_type 'token_transformer' in transformer/config.json, found"),
        ("transformer/config.json", {"dropout": 0.1}, "dropout: Extra inputs"),
        ("transformer/config.json", {"num_attention_heads": 3}, "a width that 3 heads divide, got 16"),
        ("transformer/config.json", {"hidden_size": "16"}, "hidden_size"),
        ("transformer/config.json", {"codebook_size": True}, "codebook_size"),
        ("transformer/config.json", {"mask_ratio_min": 0.01}, "leaves the encoder some of 16 tokens"),
        ("transformer/config.json", {"mask_ratio_mean": 0.4}, "mask_ratio_mean from"),
        (
            "transformer/config.json",
            {"mask_ratio_min": 0.5, "mask_ratio_mean": 0.5, "mask_ratio_max": 0.5},
            "mask_ratio_max above mask_ratio_min",
        ),
        ("transformer/config.json", {"hidden_size": 32}, "expected"),
        ("vqvae/config.json", {"_class_name": "AutoencoderKL"}, "a diffusers VQModel in vqvae/, found 'AutoencoderKL'"),
        ("vqvae/config.json", {"out_channels": 3}, "as many channels out as in, found 3 out and 1 in"),
        ("vqvae/config.json", {"norm_num_groups": 3}, "diffusers cannot build this tokenizer"),
        ("vqvae/config.json", {"num_vq_embeddings": 8}, "expected"),
    ],
)
def test_a_folder_of_ours_that_does_not_fit_is_refused(
    file: str, changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    change(tmp_path / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "found 'StableDiffusionPipeline'"),
        ("transformer/config.json", {"_class_name": "UNet2DModel"}, "a diffusers UVit2DModel in transformer/, found"),
        ("transformer/config.json", {"downsample": True}, "answers as many tokens as it is asked about"),
        ("transformer/config.json", {"sample_size": [4, 4]}, "sample_size, the tokens of a side"),
        ("transformer/config.json", {"num_attention_heads": "two"}, "diffusers cannot build this transformer"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type 'clip_text_model'"),
        ("scheduler/scheduler_config.json", {"mask_token_id": 3}, "a mask_token_id from 16, the first that is no code, to 17"),
        ("scheduler/scheduler_config.json", {"mask_token_id": None}, "mask_token_id from 16"),
    ],
)
def test_a_folder_of_amused_that_does_not_fit_is_refused(
    file: str, changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_amused(tmp_path)
    change(tmp_path / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    write_amused(tmp_path, text=tiny_text_encoder(projection_dim=8))
    with pytest.raises(BadModel, match=r"of width 16, projecting to 12, and 20 numbers .* found 16, 8 and 20"):
        load(tmp_path)


def test_a_tokenizer_of_words_is_needed(tmp_path: Path) -> None:
    write_amused(tmp_path)
    (tmp_path / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(BadModel, match=r"vocab\.json or tokenizer\.json"):
        load(tmp_path)


def test_without_a_scheduler_the_last_word_is_the_mask(tmp_path: Path) -> None:
    write_amused(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    assert load(tmp_path).predictor.mask_id == CODES + 1


def test_a_configuration_is_closed_and_has_the_published_sizes_by_default() -> None:
    config = TransformerConfig(codebook_size=1024, sample_size=16)
    assert (config.length, config.dropped, config.mask_id) == (256, 128, 1024)
    assert (config.hidden_size, config.num_hidden_layers, config.decoder_num_hidden_layers) == (768, 12, 8)


def test_a_kernel_that_the_text_encoder_s_configuration_names_is_not_fetched(tmp_path: Path) -> None:
    write_amused(tmp_path)
    file = tmp_path / "text_encoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_attn_implementation": "kernels-community/flash"}))
    assert load(tmp_path).grid == (4, 4)
