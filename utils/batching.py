"""How many windows go through the model at a time: as many as pay and fit, fewer after running out of memory."""
from __future__ import annotations

import logging
from pathlib import Path

import torch

from models.varsr import VARSR

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.6  # of what is free; the rest is for pictures and other programs
TOKENS_THAT_FILL = {"cpu": 4096, "cuda": 16384}  # at the last scale: beyond this, larger batches are no faster
ACTIVATION_COPIES = 6  # tensors of a block's widest width that live at the same time
DECODER_COPIES = 5  # feature maps of the decoder's finest level that live at the same time


class BatchSize:
    """A batch size that is halved each time the memory does not hold it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def halve(self) -> None:
        """After an out-of-memory error at the present size (which must be above one)."""
        self.size = max(self.size // 2, 1)
        log.warning("out of memory: going on with %d windows at a time", self.size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory, on a GPU or in its CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def automatic_batch_size(model: VARSR, guided: bool) -> BatchSize:
    """As many windows as keep the device busy, if that many fit into its free memory."""
    kind = model.device.type if model.device.type in TOKENS_THAT_FILL else "cuda"
    paying = max(TOKENS_THAT_FILL[kind] // model.config.vqvae.side ** 2, 1)
    fitting = int(MEMORY_SHARE * free_memory(model.device) / window_bytes(model, guided))
    return BatchSize(max(min(paying, fitting), 1))


def window_bytes(model: VARSR, guided: bool) -> int:
    """Rough upper bound of the memory that one more window takes while it is generated or decoded."""
    config, size = model.config, torch.finfo(model.dtype).bits // 8
    rows = 2 if guided else 1
    transformer, last = config.transformer, config.vqvae.side ** 2
    cache = 2 * transformer.depth * config.num_tokens * transformer.width * size
    activations = ACTIVATION_COPIES * last * transformer.ffn_ratio * transformer.width * size
    logits = 2 * last * config.vqvae.vocab_size * torch.finfo(torch.float32).bits // 8
    pixels = (config.image_size // config.vqvae.stem) ** 2
    decoder = DECODER_COPIES * pixels * max(config.vqvae.widths[:2]) * size
    return max(rows * (cache + activations + logits), decoder)


def free_memory(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can still be had on a device. Where the system does not tell for the CPU, a careful guess."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) \
            - torch.cuda.memory_allocated(device)
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2 ** 30
