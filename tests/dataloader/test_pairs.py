"""Batches do not depend on workers, ranks or interruptions; broken pictures are named once."""
from __future__ import annotations

import copy
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture as picture
from conftest import small_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataloader.centre_crops import CentreCrops
from dataloader.class_crops import ClassCrops
from dataloader.degradation import Degradation, DegradationConfig
from dataloader.pairs import BatchLoader, ClassSource, PairSource, WithLostClasses, WithNegatives, drawn
from dataloader.photo_crops import PhotoCrops
from dataloader.positions import PictureOrder
from models.config import HIGH_QUALITY, LOW_QUALITY
from training.flags import build_parser, parse
from training.setup import photo_pairs
from training.transformer import TransformerSettings, TransformerStage
from utils.ranks import Ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "trainset"
    (root / "deep" / "er").mkdir(parents=True)
    picture(200, 300, 0).save(root / "a.png")
    picture(150, 100, 1).save(root / "deep" / "er" / "b.webp", lossless=True)
    (root / "broken.png").write_bytes(b"broken")
    return root


def taken(loader: BatchLoader, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [next(loader) for _ in range(count)]


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    for batch, other in zip(first, second):
        assert all(torch.equal(a, b) for a, b in zip(batch, other))


# ---- the loader

def test_batches_are_the_same_with_workers_and_after_a_resume(folder, caplog):
    crops = CentreCrops(folder, 32)
    plain = BatchLoader(crops, 4, seed=3)
    expected = taken(plain, 6)
    assert expected[0][0].shape == (4, 3, 32, 32) and expected[0][0].dtype == torch.uint8
    caplog.clear()
    loader = BatchLoader(CentreCrops(folder, 32), 4, seed=3, workers=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert_same(taken(loader, 3), expected[:3])
    assert torch.equal(torch.get_rng_state(), before), "the model's own random numbers would differ after a resume"
    assert len(loader.failures) == 1 and caplog.text.count("broken.png") == 1
    loader.load_state_dict({"samples": 8})
    assert_same(taken(loader, 4), expected[2:])
    assert loader.state_dict() == plain.state_dict() == {"samples": 24}
    loader.close()


@pytest.mark.parametrize("kind", [PhotoCrops, CentreCrops])
def test_two_ranks_together_have_the_batches_of_one(folder, kind):
    source = kind(folder, 32)
    whole = taken(BatchLoader(source, 6, seed=1), 3)
    halves = [taken(BatchLoader(source, 3, seed=1, rank=rank, ranks=2), 3) for rank in range(2)]
    assert_same(whole, [tuple(map(torch.cat, zip(*parts))) for parts in zip(*halves)])
    assert not torch.equal(whole[0][0], taken(BatchLoader(source, 6, seed=2), 1)[0][0])


def test_other_batches_and_ranks_go_on_behind_the_same_samples(folder):
    source = PhotoCrops(folder, 32)
    state = BatchLoader(source, 2, seed=1, rank=1, ranks=2).state_dict()
    assert state == {"samples": 0}
    begun = BatchLoader(source, 2, seed=1, rank=1, ranks=2)
    taken(begun, 3)
    alone = BatchLoader(source, 4, seed=1)
    alone.load_state_dict(begun.state_dict())
    assert_same(taken(alone, 1), taken(BatchLoader(source, 4, seed=1), 4)[3:])
    alone.load_state_dict({"position": 3})  # as earlier versions saved it
    assert alone.first_sample == 12


def test_no_sample_comes_twice_where_batches_do_not_divide_what_was_seen(folder):
    begun, resumed = BatchLoader(PhotoCrops(folder, 32), 6), BatchLoader(PhotoCrops(folder, 32), 16)
    taken(begun, 10)
    resumed.load_state_dict(begun.state_dict())
    assert resumed.first_sample == 64
    assert resumed.state_dict() == {"samples": 64}


def test_workers_leave_ctrl_c_to_the_main_process(folder):
    loader = BatchLoader(PhotoCrops(folder, 32), 4, seed=3, workers=2)
    first = taken(loader, 2)  # one of each: both have begun
    for worker in loader._iterator._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert_same(first + taken(loader, 5), taken(BatchLoader(PhotoCrops(folder, 32), 4, seed=3), 7))
    loader.close()


def test_bad_numbers_are_refused(folder):
    for options in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "ranks": 2}, {"batch_size": 1, "workers": -1}):
        with pytest.raises(ValueError, match="batch_size"):
            BatchLoader(PhotoCrops(folder, 32), **options)


# ---- pairs

def test_pairs_resume_exactly_and_do_not_depend_on_ranks(folder):
    config = DegradationConfig.load(group=2)
    source = WithNegatives(PhotoCrops(folder, 32), 0.4)

    def pairs(batch: int, **options) -> PairSource:
        return PairSource(BatchLoader(source, batch, seed=5, **options), Degradation(config).and_upsample, config.group)
    whole = pairs(8)
    drawn = [whole.draw(CPU) for _ in range(3)]
    resumed = pairs(8)
    resumed.load_state_dict({"samples": 16})
    again = resumed.draw(CPU)
    assert torch.equal(again.lr, drawn[2].lr) and torch.equal(again.target, drawn[2].target)
    halves = [pairs(4, rank=rank, ranks=2).draw(CPU) for rank in range(2)]
    assert torch.equal(torch.cat([half.lr for half in halves]), drawn[0].lr)
    for pair in drawn:
        assert pair.lr.shape == pair.target.shape == (8, 3, 32, 32)
        for target, lr, label in zip(pair.target, pair.lr, pair.labels):
            assert torch.equal(target, lr) == (label == LOW_QUALITY)


def test_a_batch_that_was_drawn_ahead_changes_nothing(folder):
    def pairs():
        return PairSource(BatchLoader(PhotoCrops(folder, 32), 4, seed=2), Degradation().and_upsample, 2)
    plain, ahead = pairs(), pairs()
    expected = [plain.draw(CPU) for _ in range(3)]
    for i in range(2):
        assert torch.equal(ahead.draw(CPU).lr, expected[i].lr)
        ahead.prepare(CPU)
        assert ahead.state_dict() == {"samples": 4 * (i + 1)}, "a resumed run must see it again"
    resumed = pairs()
    resumed.prepare(CPU)
    resumed.load_state_dict(ahead.state_dict())
    assert torch.equal(resumed.draw(CPU).lr, expected[2].lr) and torch.equal(ahead.draw(CPU).lr, expected[2].lr)


def test_a_stage_goes_on_at_its_data_position(folder):
    def stage(seed: int) -> TransformerStage:
        crops = PhotoCrops(folder, 32)
        pairs = PairSource(BatchLoader(crops, 4, seed=2), Degradation().and_upsample, 4)
        validation = PairSource(BatchLoader(crops, 2), Degradation().and_upsample).draw(CPU)
        model = small_model(seed=seed).requires_grad_(True)
        settings = TransformerSettings(batch_size=4, max_iters=6, precision="fp32")
        return TransformerStage(model, pairs, validation, settings, CPU)
    first, second = stage(0), stage(1)
    for i in range(2):
        first.train_step(i)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = []
    for continued in (first, second):
        torch.manual_seed(7)
        losses.append([continued.train_step(i)["loss"] for i in (2, 3)])
    assert losses[0] == losses[1]


def test_negatives_come_from_their_own_pictures(folder, tmp_path):
    Image.new("RGB", (40, 40), "black").save(tmp_path / "n.png")
    source = WithNegatives(CentreCrops(folder, 32), 0.25, CentreCrops(tmp_path, 32, label=LOW_QUALITY))
    pixels, labels = next(BatchLoader(source, 400))
    assert torch.equal(pixels.flatten(1).amax(1) == 0, labels == LOW_QUALITY)
    assert float((labels == LOW_QUALITY).float().mean()) == pytest.approx(0.25, abs=0.07)


def test_classes_are_equally_frequent_and_some_are_lost(tmp_path):
    for level, name in ((50, "dark"), (200, "light")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), (level,) * 3).save(tmp_path / name / "a.png")
    crops = ClassCrops(tmp_path, 16)
    pixels, labels = next(BatchLoader(crops, 300))
    assert torch.equal(pixels[:, 0, 0, 0] == 200, labels == 1) and 110 < int(labels.sum()) < 190
    drawn = ClassSource(BatchLoader(WithLostClasses(crops, 2, 0.1), 300)).draw(CPU)
    assert drawn.lr is None and torch.equal((drawn.target > 0)[:, 0, 0, 0], labels == 1)
    lost = drawn.labels
    assert torch.equal(lost[lost < 2], labels[lost < 2]) and 15 < int((lost == 2).sum()) < 50


@pytest.mark.parametrize("stage", ["sr", "decoder"])
def test_training_sees_the_same_samples_with_any_number_of_workers(folder, stage):
    def drawn(workers: int) -> list[torch.Tensor]:
        flags = ["--stage", stage, "--data", str(folder), "--device", "cpu", "--workers", str(workers)]
        pairs = photo_pairs(parse(build_parser(None), flags), 32, 2, Ranks()).pairs
        batches = [pairs.draw(CPU) for _ in range(3)]
        assert pairs.loader.workers == workers
        pairs.loader.close()
        return [part for batch in batches for part in (batch.target, batch.lr, batch.labels)]
    alone, ahead = drawn(0), drawn(4)
    assert all(torch.equal(*each) for each in zip(alone, ahead, strict=True))


# ---- the paper's crops

def test_published_crops_follow_the_recipe(folder, tmp_path):
    negative = picture(80, 120, 5)
    negative.save(tmp_path / "n.png")
    # 200x300 to a short side of 80 is 80x120, the middle 64x64 starts at row 8, column 28
    high = Image.open(folder / "a.png").resize((120, 80), Image.Resampling.LANCZOS)
    low = negative.resize((96, 64), Image.Resampling.LANCZOS)
    for root, label, expected in ((folder / "a.png", HIGH_QUALITY, np.asarray(high)[8:72, 28:92]),
                                  (tmp_path, LOW_QUALITY, np.asarray(low)[:, 16:80])):
        data = CentreCrops(root, 64, label=label)
        flips = []
        for position in range(12):
            crop, found = data.sample(position, 7)
            flips.append(not np.array_equal(crop, expected))
            assert found == label and np.array_equal(crop[:, ::-1] if flips[-1] else crop, expected)
        assert 0 < sum(flips) < 12


@given(count=st.integers(1, 40), seed=st.integers(-2 ** 63, 2 ** 63), epoch=st.integers(0, 1000))
def test_an_epoch_shows_every_picture_once(count, seed, epoch):
    order = PictureOrder([1.0] * count)
    shown = [order.index(epoch * count + i, seed) for i in range(count)]
    assert sorted(shown) == list(range(count))


def test_epochs_differ_and_weights_count():
    order = PictureOrder([1.0] * 30)
    epochs = [tuple(order.index(epoch * 30 + i, 0) for i in range(30)) for epoch in range(3)]
    assert len(set(epochs)) == 3
    weighted = PictureOrder([1.0, 2.0, 5.0])
    shares = Counter(weighted.index(i, 0) for i in range(1600))
    assert [shares[i] / 1600 for i in range(3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.04)


def test_published_crops_pass_over_broken_pictures(folder, tmp_path, caplog):
    data = CentreCrops(folder, 32)
    assert len(data) == 3
    batch = drawn(data, 12, seed=7)
    assert torch.equal(batch, drawn(data, 12, seed=7)) and batch.shape == (12, 3, 32, 32)
    assert caplog.text.count("broken.png") == 1 and len(data.failures) == 1
    (tmp_path / "x.png").write_bytes(b"broken")
    with pytest.raises(FileNotFoundError, match="none of the 1"):
        CentreCrops(tmp_path, 32).sample(0, 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no pictures"):
        CentreCrops(empty, 32)
