"""Linear layers in 8 bits for GPUs: integers or floats, one scale an output channel and one a token (W8A8 dynamic).

The arithmetic is that of `packed.QuantizedLinear`, whose kernels only CPUs have. The products used here exist on both,
so these layers can be checked without a GPU.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 127  # of a signed 8-bit integer; its -128 is not used
FLOAT8 = torch.float8_e4m3fn
CAPABILITIES = {"int8": (7, 5), "fp8": (8, 9)}  # first with tensor cores for it: Turing, Ada
TINY = 1e-12  # smallest scale: a row of zeros stays zeros
MIN_TOKENS = 32  # the integer product of GPUs takes no fewer rows than 17


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
    """A `Linear`, with tanh-GELU after it if asked, whose weight is held in int8 or FLOAT8 (`kind`).

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
        raise ValueError(f"{name} needs compute capability {least[0]}.{least[1]}, and this GPU has "
                         f"{found[0]}.{found[1]}: use --dtype bf16 or fp16")
