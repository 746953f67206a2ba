"""The training stages on the debug preset: they learn, resume exactly and export what from_pretrained reads."""
from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from stages import (
    CPU,
    Squares,
    class_detail_stage,
    decoder_stage,
    detail_stage,
    faithful_stage,
    fresh_model,
    pairs,
    perceptual,
    tokenizer_stage,
    transformer_stage,
    validation,
)
from torch import Tensor

from models.varsr import VARSR
from models.weights.transfer import with_detail
from training.class_detail import ClassDetailStage, latents_of
from training.decoder import DecoderSettings, DecoderStage
from training.detail import DetailSettings, DetailStage
from training.faithful import FaithfulSettings, FaithfulStage
from training.optim import parameter_groups
from training.perceptual import Perceptual
from training.pool import PooledStage, from_bytes
from training.states import StateFolder
from training.transformer import NO_DECAY
from utils.ranks import Ranks

STAGES = {"tokenizer": tokenizer_stage, "adversarial": lambda: tokenizer_stage(adversarial_start=0.0),
          "projected": lambda: tokenizer_stage(perceptual(), adversary="both", adversarial_start=0.0),
          "transformer": transformer_stage, "by Muon": partial(transformer_stage, muon=True),
          "decoder": decoder_stage, "faithful": faithful_stage, "detail": detail_stage,
          "detail on decoded": partial(detail_stage, faithful=False),
          "class detail": class_detail_stage}
LEARNING = ("tokenizer", "transformer", "by Muon", "decoder", "faithful", "detail", "detail on decoded", "class detail")


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns(name: str) -> None:
    # an untrained tokenizer's latents tell crops of classes apart and no more: the branch learns a few by heart
    judged = {"detail": detail_stage, "detail on decoded": partial(detail_stage, faithful=False),
              "class detail": partial(class_detail_stage, count=4, max_iters=80, learning_rate=1e-2)}
    stage = judged[name](adversarial_weight=0.0) if name in judged else STAGES[name]()
    key = "loss" if name in ("transformer", "by Muon", *judged) else "pixel"
    values = [stage.train_step(i)[key] for i in range(stage.settings.max_iters)]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


@pytest.mark.parametrize("name", STAGES)
def test_it_resumes_exactly(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]()
    for i in range(3):
        stage.train_step(i)
    states = StateFolder(tmp_path)
    states.save(3, stage.state_dict())
    torch.manual_seed(5)
    expected = [stage.train_step(i)["loss"] for i in range(3, 6)]
    again = STAGES[name]()
    again.load_state_dict(states.load_newest())
    torch.manual_seed(5)
    assert [again.train_step(i)["loss"] for i in range(3, 6)] == expected


@pytest.mark.parametrize("muon", [False, True])
def test_the_state_of_the_other_optimiser_is_refused(muon: bool, tmp_path: Path) -> None:
    stage = transformer_stage(muon=not muon)
    stage.train_step(0)
    states = StateFolder(tmp_path)
    states.save(1, stage.state_dict())
    with pytest.raises((ValueError, LookupError, RuntimeError)):
        transformer_stage(muon=muon).load_state_dict(states.load_newest())


def test_muon_trains_the_matrices_of_the_blocks() -> None:
    stage = transformer_stage(muon=True)
    names = {id(weight): name for name, weight in stage.model.named_parameters()}
    adam, muon = ([names[id(weight)] for group in each.param_groups for weight in group["params"]]
                  for each in stage.optimizers)
    expected = [name for name in names.values() if re.fullmatch(
        r"transformer\.blocks\.\d+\.(attention\.(qkv|out)|feed_forward\.(expand|project))\.weight", name)]
    assert sorted(muon) == sorted(expected)
    assert sorted(adam + muon) == sorted(name for name, weight in stage.model.named_parameters()
                                         if weight.requires_grad)
    exempt = parameter_groups(stage.model, 0.1, NO_DECAY)[1]["params"]
    plain = transformer_stage().optimizers[0].param_groups
    for group in (stage.optimizers[0].param_groups[1], plain[1]):  # no decay as before
        assert group["weight_decay"] == 0 and len(group["params"]) == len(exempt)


@pytest.mark.parametrize("name", ["transformer", "by Muon", "decoder", "faithful", "detail"])
def test_the_result_loads(name: str, tmp_path: Path) -> None:
    stage = STAGES[name]()
    stage.train_step(0)
    report = stage.report(tmp_path, 1)
    assert set(report) >= {"psnr_y", "psnr_y_bicubic"} and list((tmp_path / "sheets").glob("*.png"))
    stage.export(tmp_path)
    assert VARSR.from_pretrained(tmp_path).config == stage.model.config


def test_the_decoder_stage_trains_the_decoder_alone() -> None:
    stage = decoder_stage()
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    for i in range(2):
        stage.train_step(i)
    changed = {name.split(".")[1] for name, value in stage.model.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {"decoder", "post_quant", "fidelity"}


def test_the_faithful_stage_trains_its_branch_alone_and_generates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = faithful_stage()
    monkeypatch.setattr(VARSR, "generate_latent", None)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    stage.train_step(0)
    changed = {name.split(".")[1] for name, value in stage.model.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {"faithful"}


def test_the_faithful_loss_is_the_sum_of_its_parts() -> None:
    step = faithful_stage(ssim_weight=0.3, chroma_weight=2.0).train_step(0)
    assert step["loss"] == pytest.approx(step["pixel"] + 0.3 * (1 - step["ssim"]) + 2 * step["chroma"], rel=1e-5)


def test_stages_name_the_one_that_trains_a_models_pictures() -> None:
    model = faithful_stage().model
    with pytest.raises(ValueError, match="--stage faithful"):
        DecoderStage(model, pairs(4), validation(), DecoderSettings(), CPU)
    with pytest.raises(ValueError, match="no faithful branch"):
        FaithfulStage(fresh_model(), pairs(4), validation(), FaithfulSettings(), CPU)


def test_the_branch_of_classes_is_trained_alone_on_the_right_codes(tmp_path: Path) -> None:
    """Validation keeps the same latents."""
    stage = class_detail_stage()
    model = stage.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = stage.train_step(0)
    assert {"pixel", "chroma", "maps", "adversarial", "discriminator"} <= metrics.keys()
    assert {name.split(".")[1] for name, value in model.state_dict().items()
            if not torch.equal(value, before[name])} == {"detail"}
    first, second = (stage.report(tmp_path, i) for i in (1, 2))
    assert first == second and first["distance"] > 0
    stage.export(tmp_path)
    assert VARSR.from_pretrained(tmp_path).config == model.config


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_only_discriminators_judge_what_the_transformer_draws(weight: float) -> None:
    """Without them, what is in the pool of drawn codes changes nothing."""
    weights = []
    for share in (1, 0):
        stage = class_detail_stage(adversarial_weight=weight)
        while len(stage.pool) < stage.settings.pool_size:
            stage._add_samples()
        for name in ("drawn_latent", "drawn_decoded"):
            stage.pool.fields[name] *= share
        stage.train_step(1)
        weights.append(stage.trained.conv_in.weight)
    assert torch.equal(*weights) == (weight == 0)


@pytest.mark.parametrize("stage_of", [detail_stage, class_detail_stage])
def test_the_detail_stages_in_bf16(stage_of: Callable[..., DetailStage | ClassDetailStage]) -> None:
    exact, rounded = (stage_of(precision=precision).train_step(0)["pixel"] for precision in ("fp32", "bf16"))
    assert rounded == pytest.approx(exact, rel=0.02)


def test_the_latents_of_classes_are_the_right_codes_and_what_the_refiner_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = class_detail_stage()
    model, pairs = stage.model, stage.pairs.draw(torch.device("cpu"))
    with torch.no_grad():
        quantizer = model.vqvae.quantizer
        codes = quantizer.encode(model.vqvae.encode(pairs.target)).codes
        expected = sum(quantizer.contribution(quantizer.lookup(each, scale), scale) for scale, each in enumerate(codes))
    assert (latents_of(model, pairs, seed=1) - latents_of(model, pairs, seed=2)).abs().max() > 1e-3
    monkeypatch.setattr(VARSR, "refine", lambda self, hidden, embedding, *_: torch.zeros_like(embedding))
    torch.testing.assert_close(latents_of(model, pairs, seed=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adversary", ["patch", "projected", "both"])
def test_the_detail_stage_trains_the_branch_alone(adversary: str) -> None:
    stage = detail_stage(adversary=adversary)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    seen = {name: value.clone() for name, value in stage.perceptual.features.state_dict().items()}
    metrics = stage.train_step(0)
    assert {"pixel", "perceptual", "maps", "adversarial", "discriminator"} <= metrics.keys()
    assert {name.split(".")[1] for name, value in stage.model.state_dict().items()
            if not torch.equal(value, before[name])} == {"detail"}
    assert all(torch.equal(value, seen[name]) for name, value in stage.perceptual.features.state_dict().items())


def test_the_detail_loss_is_the_sum_of_its_parts() -> None:
    weights = {"pixel_weight": 2.0, "chroma_weight": 3.0, "perceptual_weight": 0.3, "map_weight": 0.4,
               "adversarial_weight": 0.7, "rim_weight": 5.0, "lattice_weight": 6.0, "coarse_weight": 7.0,
               "contrast_weight": 8.0, "shift_weight": 9.0}
    step = detail_stage(**weights).train_step(0)
    parts = {"pixel": "pixel", "chroma": "chroma", "perceptual": "perceptual", "maps": "map",
             "adversarial": "adversarial", "rims": "rim", "lattice": "lattice", "coarse": "coarse",
             "contrast": "contrast", "shift": "shift"}
    expected = sum(weights[f"{weight}_weight"] * step[name] for name, weight in parts.items())
    assert step["loss"] == pytest.approx(expected, rel=1e-5)


class Painter:
    """In place of a detail branch: a function of pictures (B, 3, H, W), cut into cells and put together again."""

    def __init__(self, paint: Callable[[Tensor], Tensor]) -> None:
        self.paint = paint

    def picture_cells(self, decoded: Tensor, _: Tensor | None) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(decoded, 4)

    def __call__(self, cells: Tensor, _: Tensor) -> Tensor:
        return self.paint(torch.nn.functional.pixel_shuffle(cells, 4))


def test_a_shift_of_the_grid_changes_a_weave_and_nothing_else() -> None:
    stage = detail_stage(faithful=False)
    stage.train_step(0)
    drawn = stage.drawn()
    weave = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))

    def distance(paint: Callable[[Tensor], Tensor]) -> float:
        stage.trained = Painter(paint)
        stage.generator.manual_seed(1)
        return stage._shift_distance(drawn).item()

    assert distance(lambda pictures: pictures.square()) == pytest.approx(0, abs=1e-6)
    meshed = distance(lambda pictures: torch.zeros_like(pictures) + weave.repeat(8, 8)[:pictures.shape[2],
                                                                                      :pictures.shape[3]])
    expected = [(weave - weave.roll((-by, -by), (0, 1))).abs().mean().item() for by in (1, 2, 3)]
    assert min(expected) > 0.1
    assert any(meshed == pytest.approx(each, rel=0.02) for each in expected)  # the part is no whole number of periods


@pytest.mark.parametrize("faithful", [True, False])
def test_the_pool_of_details_holds_what_the_model_makes(faithful: bool) -> None:
    """Faithful pictures and their features, or decoded ones; and the maps of HR and LR pictures, as computed anew."""
    stage = detail_stage(faithful=faithful)
    stage.train_step(0)
    fields = stage.pool.fields
    assert ("seen" in fields) == faithful
    if faithful:
        features = stage.model.vqvae.faithful.features(from_bytes(fields["lr"]))
        torch.testing.assert_close(fields["seen"].float(), features, atol=0.02, rtol=0.02)
    lr, hr = from_bytes(fields["lr"]), from_bytes(fields["hr"])
    decoded = stage.model.vqvae.decode_unclamped(fields["latent"].float(), lr)
    assert (decoded.clamp(-1, 1) - from_bytes(fields["decoded"])).abs().max() < 0.02
    for name, pictures in (("lr", lr), ("hr", hr)):
        for i, each in enumerate(stage.perceptual.look(pictures).maps):
            torch.testing.assert_close(fields[f"{name}_map{i}"].float(), each, atol=5e-3, rtol=5e-3)


def test_a_share_of_the_samples_has_the_right_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the refiner adds, which is drawn, their latents are those of the codes."""
    monkeypatch.setattr(VARSR, "refine", lambda self, hidden, embedding, *_: torch.zeros_like(embedding))
    for share, count in ((0.0, 0), (0.5, 1), (1.0, 2)):
        stage = detail_stage(right_share=share)
        pairs, latent, _ = stage.generated()
        with torch.no_grad():
            expected = stage.model.vqvae.quantizer.encode(stage.model.vqvae.encode(pairs.target)).f_hat
        right = (latent - expected).abs().amax((1, 2, 3)) < 1e-4
        assert right.tolist() == [True] * count + [False] * (2 - count)


def test_a_state_without_samples_fills_its_pool_anew() -> None:
    stage, again = detail_stage(), detail_stage()
    again.load_state_dict(stage.state_dict())
    assert again.train_step(0) == stage.train_step(0)


@pytest.mark.parametrize("stage_of", [decoder_stage, faithful_stage, detail_stage, class_detail_stage])
def test_the_pool_is_filled_at_first_and_renewed_slowly(stage_of: Callable[..., PooledStage]) -> None:
    stage = stage_of(renew_every=3)
    added = []
    for i in range(7):
        stage.train_step(i)
        added.append(stage.pool.added)
    assert added == [8, 8, 8, 10, 10, 10, 12]


def test_details_need_a_branch_and_eyes() -> None:
    settings = DetailSettings()
    with pytest.raises(ValueError, match="no detail branch"):
        DetailStage(fresh_model(), pairs(4), validation(), settings, perceptual(), CPU)
    with pytest.raises(ValueError, match="nothing here"):
        DetailStage(with_detail(fresh_model(), 8, 1), pairs(4), validation(), settings,
                    Perceptual(description="nothing here"), CPU)
    with pytest.raises(ValueError, match="pixel_weight must be at least 0"):
        DetailSettings(pixel_weight=-1)
    for name in ("rim_weight", "lattice_weight", "coarse_weight", "contrast_weight", "shift_weight"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            DetailSettings(**{name: -1})
    with pytest.raises(ValueError, match=r"right_share must be in \[0, 1\]"):
        DetailSettings(right_share=2)


def test_structural_similarity_is_part_of_the_decoder_loss() -> None:
    stage = decoder_stage(ssim_weight=0.5)
    steps = [stage.train_step(i) for i in range(stage.settings.max_iters)]
    assert all(step["loss"] == pytest.approx(step["pixel"] + 0.5 * (1 - step["ssim"])) for step in steps)
    assert sum(step["ssim"] for step in steps[-5:]) > sum(step["ssim"] for step in steps[:5])


def test_the_discriminator_joins_after_the_warm_up() -> None:
    stage = tokenizer_stage(max_iters=12, adversarial_start=0.5)
    joined = ["discriminator" in stage.train_step(i) for i in range(12)]
    assert joined == [False] * 6 + [True] * 6


def test_half_precision_takes_the_same_steps() -> None:
    losses = {}
    for precision in ("fp32", "fp16"):  # whose gradients would vanish without the loss scale
        stage = tokenizer_stage(precision=precision, adversarial_start=0.0)
        losses[precision] = [stage.train_step(i)["loss"] for i in range(4)]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)


@pytest.mark.parametrize("kind", ["maps", "judge"])
def test_the_perceptual_loss_is_weighed_in(kind: str) -> None:
    eyes = perceptual() if kind == "maps" else Perceptual(judge=Squares())
    plain = tokenizer_stage(adversarial_weight=0.0).train_step(0)
    weighed = tokenizer_stage(eyes, perceptual_weight=3.0, adversarial_weight=0.0).train_step(0)
    assert weighed["pixel"] == plain["pixel"] and weighed["perceptual"] > 0
    assert weighed["loss"] == pytest.approx(plain["loss"] + 3 * weighed["perceptual"], rel=1e-5)
    unweighed = tokenizer_stage(eyes, perceptual_weight=0.0, adversarial_weight=0.0).train_step(0)
    assert unweighed["loss"] == plain["loss"] and "perceptual" not in unweighed


def test_last_scales_are_left_out_of_some_rows() -> None:
    stage = tokenizer_stage(scale_dropout=0.5, max_dropped=2)
    kept = torch.cat([stage._kept_scales(1000, 0), stage._kept_scales(1000, 1)])
    assert set(kept.tolist()) == {1, 2, 3} and 0.45 < (kept == 3).float().mean() < 0.55
    assert torch.equal(tokenizer_stage(scale_dropout=0.0)._kept_scales(50, 0), torch.full((50,), 3))


def test_dead_codes_are_revived_while_it_trains(tmp_path: Path) -> None:
    used = {}
    for revive_every in (10, 1000):
        stage = tokenizer_stage(revive_every=revive_every)
        with torch.no_grad():
            stage.model.quantizer.codebook.weight[4:] = 100.0  # far from every latent: 28 of 32 codes are dead
            stage.average.model.quantizer.codebook.weight[4:] = 100.0
        revived = [stage.train_step(i)["revived"] for i in range(10)]
        assert sum(revived[:9]) == 0 and (revived[9] >= 28) == (revive_every == 10)
        used[revive_every] = stage.report(tmp_path, 10)["codes_used"]
        for model in (stage.model, stage.average.model):  # the averaged codes do not linger at their old places
            assert (model.quantizer.codebook.weight[4:].abs().max() < 10) == (revive_every == 10)
    assert used[10] > used[1000]


def test_revived_codes_are_those_of_the_main_process() -> None:
    class OfTheMain(Ranks):
        def share_(self, tensor: Tensor) -> None:
            tensor.fill_(7.0)
    stage = tokenizer_stage(revive_every=2, ranks=OfTheMain())
    with torch.no_grad():
        stage.model.quantizer.codebook.weight[4:] = 100.0
    assert [stage.train_step(i)["revived"] for i in range(2)][1] >= 28
    for model in (stage.model, stage.average.model):
        assert (model.quantizer.codebook.weight[4:] == 7).all(1).sum() >= 28


def test_a_state_without_discriminator_is_refused() -> None:
    state = tokenizer_stage(adversarial_weight=0.0).state_dict()
    with pytest.raises(ValueError, match="adversarial_weight"):
        tokenizer_stage().load_state_dict(state)


def test_weight_decay_groups_follow_the_rule() -> None:
    model = fresh_model()
    decayed, exempt = parameter_groups(model.transformer, 0.05, NO_DECAY)
    names = {id(p): name for name, p in model.transformer.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} >= {"blocks.0.attention.qkv.weight", "token_embedding.weight"}
    assert {names[id(p)] for p in exempt["params"]} >= {
        "start_position", "class_embedding.weight", "level_embedding.weight", "blocks.0.attention.log_scale",
        "head.bias"}
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


def test_negatives_without_their_own_pictures_are_their_lr() -> None:
    batch = pairs(16, negative_share=0.5).draw(CPU)
    assert 0 < batch.labels.sum() < 16
    for target, lr, label in zip(batch.target, batch.lr, batch.labels):
        assert torch.equal(target, lr) == bool(label)
