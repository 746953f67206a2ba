"""The residual quantiser against plain loops and its own invariants."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.quantizer import MultiScaleQuantizer


def quantizer(scales: tuple[int, ...] = (1, 2, 4), vocab: int = 16, channels: int = 3) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    return MultiScaleQuantizer(scales, vocab, channels, phi_count=4).requires_grad_(False)


def test_phi_of_the_published_scales() -> None:
    """Ten scales, four phi: the ties at scales 2 and 7 fall as numpy's arg-min decides, the first tick or so."""
    ten = quantizer((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
    assert [ten.phi_index(k) for k in range(10)][:2] == [0, 0]
    assert [ten.phi_index(k) for k in (3, 4, 5, 6)] == [1, 1, 2, 2]
    assert [ten.phi_index(k) for k in (8, 9)] == [3, 3]


def test_nearest_codes_equal_brute_force() -> None:
    q = quantizer()
    cells = torch.randn(50, 3)
    expected = torch.stack([(q.codebook.weight - cell).square().sum(1).argmin() for cell in cells])
    assert torch.equal(q.nearest_codes(cells), expected)


@pytest.fixture()
def tf32() -> Iterator[None]:
    """A program's own switches for it, as PyTorch now has them."""
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    if not all(hasattr(switch, "fp32_precision") for switch in switches):
        pytest.skip("this PyTorch has the older switches")
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32"
    yield
    after = [switch.fp32_precision for switch in switches]
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value
    assert after == ["tf32", "tf32"]


class Products(TorchDispatchMode):
    """Which types products are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        if operator in (torch.ops.aten.mm.default, torch.ops.aten.convolution.default):
            self.types.append(result.dtype)
        return result


@pytest.mark.parametrize(("device", "expected"), [("cpu", torch.float32), ("cuda", torch.float64)])
def test_products_are_exact_whatever_a_program_has_set(device: str, expected: torch.dtype, tf32: None) -> None:
    """With tensors that have a device and no numbers: that needs no GPU."""
    with FakeTensorMode(), torch.device(device), Products() as products:
        q = quantizer()
        assert q.nearest_codes(torch.ones(5, 3)).dtype == torch.int64
        assert q.contribution(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16), 1).dtype == torch.float32
    assert products.types == [expected] * 2


def test_nothing_is_lost_between_code_sum_and_rest() -> None:
    q = quantizer()
    latent = torch.randn(2, 3, 4, 4)
    result = q.encode(latent)
    last = q.lookup(result.codes[-1], 2)
    torch.testing.assert_close(result.f_hat + (result.residual_last - last), latent)


def test_teacher_inputs_follow_the_partial_sums() -> None:
    q = quantizer()
    result = q.encode(torch.randn(2, 3, 4, 4))
    codes = result.codes
    f_hat = q.contribution(q.lookup(codes[0], 0), 0)
    second = F.adaptive_avg_pool2d(f_hat, 2).flatten(2).transpose(1, 2)
    f_hat = f_hat + q.contribution(q.lookup(codes[1], 1), 1)
    third = F.adaptive_avg_pool2d(f_hat, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result.inputs, torch.cat([second, third], 1))


@pytest.mark.parametrize("pictures", [1, 2])
def test_wrong_codes_reach_the_inputs_of_any_batch(pictures: int) -> None:
    q = quantizer()
    latent = torch.randn(pictures, 3, 4, 4)
    right, wrong = q.encode(latent), q.encode(latent, error_rate=1.0)
    assert torch.equal(wrong.codes[0], right.codes[0])  # what is to be predicted there stays right
    assert not torch.equal(wrong.inputs, right.inputs)


def test_training_pass_agrees_with_encode_and_is_straight_through() -> None:
    q = quantizer().requires_grad_(True)
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    through, loss, result = q(latent, 0.25)
    plain = q.encode(latent)
    torch.testing.assert_close(through.detach(), plain.f_hat)
    assert all(torch.equal(a, b) for a, b in zip(result.codes, plain.codes))
    gradient, = torch.autograd.grad(through.sum(), latent, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(latent))
    loss.backward()
    assert q.codebook.weight.grad.abs().sum() > 0 and latent.grad.abs().sum() > 0


def test_gradients_by_hand() -> None:
    """The latent gets the reader's gradient at f_hat and each scale's pull to its sum; the codebook the slope of the
    loss, which is quadratic in it, so that a central difference is exact."""
    q = quantizer().requires_grad_(True)
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    commitment, scales = 0.25, 3
    through, loss, result = q(latent, commitment)
    (through.pow(3).sum() + loss).backward()

    with torch.no_grad():
        expected, f_hat = 3 * result.f_hat.square(), torch.zeros_like(latent)
        for scale in range(scales):
            f_hat = f_hat + q.contribution(q.lookup(result.codes[scale], scale), scale)
            expected += commitment / scales * 2 * (latent - f_hat) / latent.numel()
    torch.testing.assert_close(latent.grad, expected)

    def codebook_loss() -> float:
        f_hat, total = torch.zeros_like(latent), 0.0
        for scale, codes in enumerate(result.codes):
            f_hat = f_hat + q.contribution(q.lookup(codes, scale), scale)
            total += (f_hat - latent).double().square().mean().item() / scales
        return total

    used = int(result.codes[0][0, 0])
    for channel in range(3):
        with torch.no_grad():
            before = q.codebook.weight[used, channel].item()
            q.codebook.weight[used, channel] = before + 0.5
            above = codebook_loss()
            q.codebook.weight[used, channel] = before - 0.5
            below = codebook_loss()
            q.codebook.weight[used, channel] = before
        assert abs(q.codebook.weight.grad[used, channel].item() - (above - below)) < 1e-5


def test_rows_without_their_last_scales() -> None:
    q = quantizer()
    latent = torch.randn(3, 3, 4, 4)
    codes = q.encode(latent).codes
    sums = [q.contribution(q.lookup(codes[0], 0), 0)]
    for scale in (1, 2):
        sums.append(sums[-1] + q.contribution(q.lookup(codes[scale], scale), scale))
    through, loss, _ = q(latent, 0.25, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(through, torch.stack([sums[0][0], sums[1][1], sums[2][2]]))
    assert torch.equal(loss, q(latent, 0.25)[1])


def test_codes_in_use_stay_where_they_are() -> None:
    q = quantizer(vocab=64)
    latent = torch.randn(8, 3, 4, 4)
    for _ in range(50):
        _, _, result = q(latent, 0.25)
    used = torch.cat([codes.flatten() for codes in result.codes]).unique()
    before = q.codebook.weight.clone()
    moved = q.revive_dead_codes(latent, threshold=0.01, generator=torch.Generator().manual_seed(0))
    changed = (q.codebook.weight != before).any(1).nonzero().flatten()
    assert torch.equal(moved, changed) and len(moved) == 64 - len(used)
    assert not set(used.tolist()) & set(changed.tolist())
    assert not len(q.revive_dead_codes(latent, threshold=0.01))  # the moved ones have a grace period


def test_dead_codes_move_onto_residuals() -> None:
    q = quantizer(vocab=64)
    with torch.no_grad():
        q.codebook.weight[32:] = 100.0  # far from every latent
    latent = torch.randn(8, 3, 4, 4)
    for _ in range(50):
        q(latent, 0.25)
    before = (q.encode(latent).f_hat - latent).square().mean()
    moved = q.revive_dead_codes(latent, threshold=0.01, generator=torch.Generator().manual_seed(0))
    assert len(moved) >= 32 and q.codebook.weight.abs().max() < 50
    assert (q.encode(latent).f_hat - latent).square().mean() < before
