"""Linear layers laid out for inference: for oneDNN's kernels on CPUs, or held in 8 bits on CPUs and GPUs.

PyTorch's `Linear` arranges its weight anew at every call. Packed once, bf16 products run 5 to 8 % faster with many
tokens and twice as fast with few; fp32 ones gain 12 % (docs/performance.md). The operators are those that PyTorch's
own compiler emits for `Linear` on CPUs.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import return_freed_memory
from utils.errors import UserError

from ..varsr import VARSR
from ..weights.weight_file import MappedFile

INT8, FP8 = "int8", "fp8"  # what linears can be held in, beside the model's own type
ZERO = 128  # where unsigned 8-bit activations have their zero
SEVEN_BITS = 63  # largest magnitude of a 7-bit weight
PACKED_TYPES = (torch.float32, torch.bfloat16)
PROBE = (32, 64)  # shape of the factors of the products that are tried
LEVELS = 127  # of a signed 8-bit integer; its -128 is not used
FLOAT8 = torch.float8_e4m3fn
CAPABILITIES = {"int8": (7, 5), "fp8": (8, 9)}  # first with tensor cores for it: Turing, Ada
TINY = 1e-12  # smallest scale: a row of zeros stays zeros
MIN_TOKENS = 32  # the integer product of GPUs takes no fewer rows than 17


class PackedLinear(nn.Module):
    """A `Linear`, with tanh-GELU after it if asked, whose weight is in the layout of oneDNN's kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()
        self.after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.after)


class QuantizedLinear(nn.Module):
    """A `Linear` in 8-bit integers on a CPU: one scale an output channel for the weight, one a token for activations.

    Activations are quantised as they come (W8A8 dynamic), each token by its own largest value, so that a picture does
    not depend on the batch around it. `levels`: the largest magnitude of the weight's integers, see `exact_levels`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False, levels: int = LEVELS) -> None:
        super().__init__()
        weight = weight.detach()
        self.scales = (weight.abs().amax(1).float() / levels).clamp(min=TINY)
        codes = torch.div(weight, self.scales[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(codes, None)
        self.zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.detach()
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        tokens, scales = quantize_tokens(x.flatten(0, -2))
        product = torch.ops.onednn.qlinear_pointwise(tokens, 1.0, ZERO, self.weight, self.scales, self.zero_points,
                                                     None, 1.0, 0, x.dtype, "none", [], "")
        y = product.mul_(scales) if self.bias is None else torch.addcmul(self.bias, product, scales)
        return (F.gelu(y, approximate="tanh") if self.gelu else y).unflatten(0, x.shape[:-1])


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (M, C) as 8-bit integers around `ZERO` (M, C), and what one step of each token is worth (M, 1)."""
    peak = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    scales = (peak.float() / LEVELS).clamp(min=TINY).to(x.dtype)  # rounded before it is used: no error from that
    return torch.quantize_per_tensor(x * scales.float().reciprocal(), 1.0, ZERO, torch.quint8).int_repr(), scales


def packing_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether PyTorch has packed products of a type for this processor: tried, for what they need differs by type."""
    if dtype not in PACKED_TYPES:
        return False
    ones = torch.ones(PROBE, dtype=dtype)
    try:
        return bool((PackedLinear(ones, None)(ones) == PROBE[1]).all())
    except (AttributeError, RuntimeError):  # no such operator in this build, or not on this processor
        return False


def exact_levels() -> int | None:
    """The largest magnitude of 8-bit weights with which products are exact on this CPU; None: with none.

    Processors without VNNI add pairs of products in 16 bits, which weights of 8 bits overflow and those of 7 do not.
    """
    ones = torch.ones(PROBE)
    for levels in (LEVELS, SEVEN_BITS):
        try:
            product = QuantizedLinear(-ones, None, levels=levels)(ones)
        except (AttributeError, RuntimeError):
            return None
        if torch.allclose(product, torch.full_like(product, -PROBE[1])):
            return levels
    return None


def linear_kind(device: torch.device, dtype: torch.dtype, eight_bit: str | None) -> Callable[..., nn.Module]:
    """The layer that takes the place of a `Linear` of a type on a device: in `INT8`, `FP8` or (None) that type.

    Raises ValueError for other words, and where the processor or PyTorch cannot compute so.
    """
    if eight_bit not in (None, INT8, FP8):
        raise UserError(f"unknown 8-bit type {eight_bit!r}: choose {INT8}, {FP8} or none")
    if eight_bit == FP8:
        return Float8Linear
    if device.type != "cpu":
        if eight_bit is None:
            raise UserError(f"weights are packed for CPUs, and this model is on {device}")
        return Int8Linear
    if eight_bit is None:
        if not packing_works(dtype):
            raise UserError(f"PyTorch has no packed {dtype} products for this processor")
        return PackedLinear
    levels = exact_levels()
    if levels is None:
        raise UserError("PyTorch has no exact 8-bit products for this processor: use fp32")
    return partial(QuantizedLinear, levels=levels)


def row_scales(x: Tensor, largest: float) -> Tensor:
    """What one step of each row of x (M, C) is worth if its largest value becomes `largest`: (M, 1) float32."""
    return (x.abs().amax(-1, keepdim=True).float() / largest).clamp(min=TINY)


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of x (M, C) in int8 or FLOAT8, and their scales (M, 1) float32."""
    if dtype == torch.int8:
        scales = row_scales(x, LEVELS)
        return (x.float() / scales).round().to(torch.int8), scales
    scales = row_scales(x, torch.finfo(dtype).max)
    return (x.float() / scales).to(dtype), scales


class EightBitLinear(nn.Module):
    """A `Linear` for GPUs, with tanh-GELU after it if asked, whose weight is held in int8 or FLOAT8 (`kind`).

    The arithmetic is that of `QuantizedLinear`, whose kernels only CPUs have. The products used here exist on both, so
    these layers can be checked without a GPU.

    Activations are quantised as they come, each token by its own largest value, so that a picture does not depend on
    the batch around it. Widths must be multiples of 16, as tensor cores want them.
    """

    kind: torch.dtype

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        codes, scales = quantize_rows(weight.detach(), self.kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.t().contiguous())  # (1, outputs)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        tokens, scales = quantize_rows(x.flatten(0, -2), self.kind)
        y = self.product(tokens) * (scales * self.scales)
        y = (y if self.bias is None else y + self.bias).to(x.dtype)
        return (F.gelu(y, approximate="tanh") if self.gelu else y).unflatten(0, x.shape[:-1])

    def product(self, tokens: Tensor) -> Tensor:
        """Quantised tokens (M, inputs) times the quantised weight: (M, outputs), float32 or exact int32."""
        raise NotImplementedError


class Int8Linear(EightBitLinear):
    """In integers, exact up to the rounding of the factors."""

    kind = torch.int8

    def product(self, tokens: Tensor) -> Tensor:
        rows = len(tokens)
        if rows < MIN_TOKENS:
            tokens = F.pad(tokens, (0, 0, 0, MIN_TOKENS - rows))
        return torch._int_mm(tokens, self.codes.t())[:rows]


class Float8Linear(EightBitLinear):
    """In 8-bit floats with 3 bits of mantissa, summed in float32."""

    kind = FLOAT8

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__(weight, bias, gelu)
        self.register_buffer("one", torch.ones((), device=weight.device))

    def product(self, tokens: Tensor) -> Tensor:
        return torch._scaled_mm(tokens, self.codes.t(), scale_a=self.one, scale_b=self.one, out_dtype=torch.float32)


def require_gpu(device: torch.device, name: str) -> None:
    """Raise ValueError where a GPU cannot compute in "int8" or "fp8"."""
    least, found = CAPABILITIES[name], torch.cuda.get_device_capability(device)
    if found < least:
        raise UserError(f"{name} needs compute capability {least[0]}.{least[1]}, and this GPU has "
                         f"{found[0]}.{found[1]}: use --dtype bf16 or fp16")


def pack(model: VARSR, eight_bit: str | None = None) -> VARSR:
    """For inference: lay out the linears that do the work for the device's matrix kernels. The model cannot be saved
    then.

    eight_bit: hold them in 8 bits, "int8" (CPUs and GPUs) or "fp8" (GPUs; on CPUs to try, slowly).
    Raises ValueError where the device or PyTorch cannot compute so, and for a model that is packed otherwise already.
    """
    kind = linear_kind(model.device, model.dtype, eight_bit)
    if not model.is_packed:
        model.packed_fingerprint = model.fingerprint()  # while the weights are there
        replace_linears(model, kind)
        model.is_packed, model.eight_bit = True, eight_bit
    elif model.eight_bit != eight_bit:
        raise UserError(f"this model's linears are in {model.eight_bit or model.dtype} already, not in "
                        f"{eight_bit or model.dtype}: load it again")
    return model


def replace_linears(model: VARSR, kind: Callable[..., nn.Module]) -> None:
    """Put a kind of layer in place of the linears of the transformer's blocks and of the refiner; the memory of mapped
    weights is given back on the way."""
    files = MappedFile()

    def replace(layer: nn.Linear, *, bias: Tensor | None = None, gelu: bool = False) -> nn.Module:
        replacement = kind(layer.weight, layer.bias if bias is None else bias, gelu)
        files.release(layer.weight)
        return replacement
    for block in model.transformer.blocks:
        block.attention.replace_linears(replace)
        block.feed_forward.replace_linears(replace)
        return_freed_memory()  # what the conversion took is a block's weights several times over
    model.refiner.replace_linears(replace)
    return_freed_memory()
