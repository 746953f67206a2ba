"""Training one model on several devices: replicas (DDP) or shards of it (FSDP2), and what of it gets saved.

With one process and no shards all of this is the plain model.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from models.varsr import VARSR
from utils.ranks import Ranks

from .optim import average_decay, check_moments

BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # gloo also carries objects and metrics
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Parallel:
    """A model as the ranks train it together.

    `model` is the one whose parameters an optimiser takes; calling `forward` is what synchronises gradients.
    """

    def __init__(self, model: VARSR, device: torch.device, ranks: Ranks | None = None, shard: bool = False) -> None:
        """The model is moved to the device. shard: split weights, gradients and optimiser over the ranks, block by
        block; the frozen tokenizer stays whole on each."""
        self.ranks, self.device, self.shard = ranks or Ranks(), device, shard
        self.model = model.to(device)
        self.forward: nn.Module = self.model
        if shard:
            self._shard()
        elif self.ranks.world > 1:
            self.forward = nn.parallel.DistributedDataParallel(
                model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False,
                gradient_as_bucket_view=True)

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
        mesh = init_device_mesh(self.device.type, (self.ranks.world,))
        for block in self.model.transformer.blocks:
            # Modulations are computed for all blocks before the first: gathered for that, apart where they are layers.
            if hasattr(block, "modulation"):
                fully_shard(block.modulation, mesh=mesh)
            fully_shard(block, mesh=mesh)
            if not hasattr(block, "modulation"):
                register_fsdp_forward_method(block, "modulations")
        fully_shard(self.model, mesh=mesh, ignored_params=set(self.model.vqvae.parameters()))

    @contextlib.contextmanager
    def synchronized(self, last: bool) -> Iterator[None]:
        """For forward and backward of one part of an accumulated step: gradients are exchanged in the last one only."""
        if self.shard:
            self.model.set_requires_gradient_sync(last)
        if last or self.shard or self.forward is self.model:
            yield
            return
        with self.forward.no_sync():
            yield

    def state_dict(self, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
        """Whole weights and optimisers' states by parameter name, on the CPU. Every rank must call it; with shards,
        only the main rank gets the tensors. Any other number of ranks can go on from it, sharded or not."""
        model, moments = get_state_dict(self.model, optimizers, options=WHOLE)
        return {"model": model, "optimizer": moments}

    def load_state_dict(self, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; every rank needs the whole state."""
        set_state_dict(self.model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
                       options=WHOLE)
        for optimizer in optimizers:
            check_moments(optimizer)


def local_parts(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What of each tensor lies on this rank: all of it, or its shard (views)."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in (tensor.detach() for tensor in tensors)]


class ShardedAverage:
    """`optim.MovingAverage` of a model in shards, in shards itself."""

    def __init__(self, model: VARSR, decay: float) -> None:
        self.decay, self.config = decay, model.config
        self._names = [name for name, _ in model.named_parameters()]
        self._shards = [parameter.detach().clone() for parameter in model.parameters()]
        self._buffers = {name: buffer for name, buffer in model.state_dict().items() if name not in set(self._names)}

    @torch.no_grad()
    def update(self, model: VARSR, iteration: int) -> None:
        """See `MovingAverage.update`."""
        torch._foreach_lerp_(local_parts(self._shards), local_parts(model.parameters()),
                             1 - average_decay(self.decay, iteration))

    @torch.no_grad()
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU; every rank must call it."""
        whole = {}
        for name, shard in zip(self._names, self._shards, strict=True):
            tensor = shard.full_tensor() if hasattr(shard, "full_tensor") else shard
            whole[name] = tensor.cpu()
        return {**whole, **{name: buffer.cpu() for name, buffer in self._buffers.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state_dict` gave."""
        from torch.distributed.tensor import distribute_tensor
        for name, shard in zip(self._names, self._shards, strict=True):
            value = state[name].to(shard.device)
            if hasattr(shard, "full_tensor"):
                value = distribute_tensor(value, shard.device_mesh, shard.placements)
            shard.copy_(value)

    def whole(self, device: torch.device) -> VARSR:
        """The averaged model in one piece; every rank must call it."""
        model = VARSR(self.config)
        model.load_state_dict(self.state_dict())
        return model.to(device).channels_last().eval().requires_grad_(False)
