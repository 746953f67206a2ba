"""One generation, scale by scale: what it holds while it runs, and copies of it that go on with noise of their own."""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from utils.errors import UserError

from .config import GenerationConfig
from .sampling import Noise, guide, gumbel_mixture, sample_codes, to_device

if TYPE_CHECKING:
    from .attention import KVCache
    from .fastvar import FastVARConfig, TokenPruner
    from .varsr import VARSR


@dataclass
class ScaleStep:
    """What one scale decided; given to `on_scale` callbacks."""

    scale: int  # 0-based
    side: int
    logits: Tensor  # guided, (B, n_k^2, V)
    codes: Tensor  # (B, n_k^2)
    f_hat: Tensor  # (B, c, N, N), the latent so far


@dataclass
class RefinerNoise:
    """Noise of the refiner, when the caller decides it: initial (B, N^2, c), fresh (steps, B, N^2, c).

    As many steps are taken as `fresh` has.
    """

    initial: Tensor
    fresh: Tensor

    def on(self, device: torch.device) -> RefinerNoise:
        """The same on a device."""
        return RefinerNoise(to_device(self.initial, device), to_device(self.fresh, device))


@dataclass(frozen=True)
class Branches:
    """Further results of a generation of B rows: from a scale on, `count` copies of every row go on with noise of their
    own. What the scales before it decided they share.

    scale: 0-based, the first that is not shared; at least 1. options: how the copies sample. seeds: (B * count), those
    of a row behind each other. refiner_noise: of as many rows. keep: called with their latents (B, count, c, N, N).
    """

    scale: int
    options: GenerationConfig
    seeds: Sequence[int]
    refiner_noise: RefinerNoise
    keep: Callable[[Tensor], None]


@dataclass(frozen=True)
class GivenTokens:
    """Codes that stand in place of those that would be drawn: a tensor (B, n_k^2) a scale, and which of them count."""

    codes: Sequence[Tensor]
    keep: Sequence[Tensor]  # bool

    def check(self, scales: Sequence[int], batch: int) -> None:
        """Raise UserError for other shapes than those of a batch."""
        for name, maps in (("codes", self.codes), ("keep", self.keep)):
            shapes, expected = [tuple(each.shape) for each in maps], [(batch, side * side) for side in scales]
            if shapes != expected:
                raise UserError(f"{name} of given tokens must have the shapes {expected}; got {shapes}")

    def to(self, device: torch.device) -> GivenTokens:
        """The same on a device."""
        return GivenTokens(*([to_device(each, device) for each in maps] for maps in (self.codes, self.keep)))

    def put_in(self, drawn: Tensor, scale: int) -> Tensor:
        """Codes (B, n_k^2) of a scale: the given ones where they count, else the drawn ones."""
        return torch.where(self.keep[scale], self.codes[scale].to(drawn.dtype), drawn)


class Rechoose(Protocol):
    """What may choose other codes than the sampler did, at the scales (0-based) that it names."""

    scales: Collection[int]

    def __call__(self, scale: int, logits: Tensor, codes: Tensor, f_hat: Tensor) -> Tensor:
        """Codes (B, n_k^2) in place of `codes`, given guided logits (B, n_k^2, V) and the latent (B, c, N, N) of the
        scales before."""
        ...


class Generation:
    """The state of one generation of B rows, all on the device; `step` must be called for every scale in its turn."""

    def __init__(self, model: VARSR, labels: Tensor, prefix: Tensor | None, options: GenerationConfig, noise: Noise,
                 fastvar: FastVARConfig | None = None, given: GivenTokens | None = None,
                 rechoose: Rechoose | None = None) -> None:
        """labels: (B,). prefix: LR tokens (B, N^2, C) for super-resolution."""
        self.model, self.options, self.noise, self.prefix = model, options, noise, prefix
        self.given, self.rechoose = given, rechoose
        self.scales, self.batch = model.config.vqvae.scales, len(labels)
        self.first_guided = options.cfg_from_scale if options.cfg > 0 else len(self.scales)
        self.labels = labels
        if options.cfg > 0:
            unconditional = torch.full_like(labels, model.config.transformer.class_rows - 1)
            self.labels = torch.cat([labels, unconditional])
        # once per generation, not per scale
        self.modulations, self.head_modulation = model.transformer.modulations(self.labels)
        self.cache: KVCache | None = model.transformer.new_cache(len(self.labels), model.dtype, model.device)
        self.pruner: TokenPruner | None = None if fastvar is None else fastvar.pruner(self.scales)
        side = model.config.vqvae.side
        self.f_hat = torch.zeros(self.batch, model.config.vqvae.latent_channels, side, side, device=model.device)
        self.hidden = self.embedding = None  # of the last scale so far
        self.strength: float | None = None  # its guidance

    def step(self, k: int) -> ScaleStep:
        """Decide the codes of scale k (0-based)."""
        side, quantizer = self.scales[k], self.model.vqvae.quantizer
        guided = k >= self.first_guided
        if k and k == self.first_guided:  # unconditional rows begin here, from what the conditional ones have seen
            self.cache.branch(self.batch)
            if self.pruner is not None:
                self.pruner.branch()
        logits = self._logits(k, 2 if guided else 1)
        strength = self.model.guidance(self.options.cfg, k)
        self.strength = strength if guided else None
        logits = guide(logits[:self.batch], logits[self.batch:] if guided else None, strength)
        codes = sample_codes(logits, self.options.top_k, self.options.top_p, self.noise)
        if self.rechoose is not None and k in self.rechoose.scales and not self.options.more_smooth:
            codes = self.rechoose(k, logits, codes, self.f_hat)
        if self.given is not None:  # what is kept is kept, whatever would be chosen
            codes = self.given.put_in(codes, k)
        if self.options.more_smooth:
            weights = gumbel_mixture(logits, self.model.progress(k), self.options.top_k, self.options.top_p, self.noise)
            self.embedding = (weights @ quantizer.codebook.weight.float()).transpose(1, 2).unflatten(2, (side, side))
        else:
            self.embedding = quantizer.lookup(codes, k)
        self.f_hat = self.f_hat + quantizer.contribution(self.embedding, k)
        return ScaleStep(k, side, logits, codes, self.f_hat)

    def _logits(self, k: int, copies: int) -> Tensor:
        """Logits (copies * B, n_k^2, V): the conditional rows, then the unconditional ones."""
        transformer, rows = self.model.transformer, slice(copies * self.batch)
        if k == 0:
            prefix = None if self.prefix is None else self.prefix.repeat(copies, 1, 1)
            x = transformer.start_tokens(self.labels[rows], prefix)
        else:
            inputs = self.model.vqvae.quantizer.next_input(self.f_hat, k)
            x = transformer.scale_tokens(inputs, k, self.prefix).repeat(copies, 1, 1)
        self.hidden = transformer.forward_level(x, k, [each[rows] for each in self.modulations], self.cache,
                                                self.pruner)
        return transformer.logits(self.hidden, self.head_modulation[rows])

    def refined(self, noise: RefinerNoise) -> Tensor:
        """The finished latent (B, c, N, N), once all scales are decided; nothing can follow."""
        self.cache = self.pruner = None  # the refiner needs memory too
        return self.f_hat + self.model.refine(self.hidden, self.embedding, self.strength, noise)

    def fork(self, scale: int, options: GenerationConfig, noise: Noise) -> Generation:
        """Copies of every row, one behind the other, that go on from `scale`, the next one: as many as `noise` has rows
        for. Token pruning remembers rows and is not taken along."""
        count = len(noise.generators) // self.batch
        labels = self.labels[:self.batch].repeat_interleave(count)
        prefix = None if self.prefix is None else self.prefix.repeat_interleave(count, 0)
        fork = Generation(self.model, labels, prefix, options, noise)
        fork.f_hat = self.f_hat.repeat_interleave(count, 0)
        guided = self.options.cfg > 0 and (scale > self.first_guided or not self.first_guided)
        fork.cache.continue_from(self.cache, self.batch * (2 if guided else 1), count)
        return fork
