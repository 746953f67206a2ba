"""VARSR as a whole: tokenizer, transformer and refiner, the one generation path, and the training losses."""
from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import require_floats
from utils.errors import UserError

from .branches import Part
from .config import FULL_PRECISION, HIGH_QUALITY, GenerationConfig, LossConfig, VARSRConfig
from .generation import Branches, Generation, GivenTokens, Rechoose, RefinerNoise, ScaleStep
from .refiner import DiffusionRefiner
from .sampling import Noise, to_device
from .transformer import VARTransformer
from .vqvae import VQVAE

if TYPE_CHECKING:
    from .fastvar import FastVARConfig

REFINER_LOSS_WEIGHT = 2.0
FINGERPRINT_VALUES = 4096  # of each tensor, in whole rows
# What generation does without, or has in another form after `for_inference`.
NOT_IN_FINGERPRINT = re.compile(r"vqvae\.(encoder|pre_quant|linear_path\.analysis|quantizer\.code_usage)\b"
                                r"|transformer\..*(modulation|_table)")


class Losses(NamedTuple):  # a tuple, because FSDP looks for tensors in those alone
    """Training losses, and the share of codes predicted right; logits (B, tokens, V), and what each token's
    cross-entropy is and whether it was predicted right (B, tokens), come along for metrics."""

    total: Tensor
    cross_entropy: Tensor
    refiner: Tensor
    accuracy: Tensor
    logits: Tensor
    token_losses: Tensor
    hits: Tensor


class Recorder(Protocol):
    """What may stand between `generate_latent` and the generation: `models.speed.graphs.GenerationGraphs`."""

    def generate(self, kind: Hashable, generate: Callable[[dict[str, Tensor], Noise], Tensor],
                 inputs: dict[str, Tensor], seeds: Sequence[int], device: torch.device) -> Tensor:
        """`generate(inputs, noise of seeds)`, or the same by other means."""
        ...


Parameters = ParamSpec("Parameters")


def without_gradients(compute: Callable[Parameters, Tensor]) -> Callable[Parameters, Tensor]:
    """Compute in inference mode. The result is an ordinary tensor, which may be changed in place, unless the caller is
    in that mode too."""
    @wraps(compute)
    def computed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Tensor:
        with torch.inference_mode():
            result = compute(*args, **kwargs)
        return result if torch.is_inference_mode_enabled() else result.clone()
    return computed


class VARSR(nn.Module):
    """The model. Build it from a config, or load one with `from_pretrained`."""

    def __init__(self, config: VARSRConfig) -> None:
        super().__init__()
        self.config = config
        self.is_packed = False  # see models/speed/packed.py
        self.eight_bit: str | None = None  # what packed linears are held in
        self.packed_fingerprint: str | None = None  # of the weights as they were before that
        self.graphs: Recorder | None = None  # see models/speed/graphs.py
        self.vqvae = VQVAE(config.vqvae)
        self.transformer = VARTransformer(config.transformer, config.vqvae)
        self.refiner = DiffusionRefiner(config.refiner, config.vqvae.latent_channels, config.transformer.width)
        if config.inference:
            self.for_inference()

    @classmethod
    @torch.inference_mode(False)  # weights that were made in it could never have a part in a gradient
    def from_pretrained(cls, source: str | PathLike, *, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu", revision: str | None = None,
                        cache_dir: str | PathLike | None = None, local_files_only: bool = False) -> VARSR:
        """Load a model for inference: a folder of ours, a published `.pth`, or a hub id (see `checkpoint`).

        Raises FileNotFoundError or CheckpointError with the file and the remedy.
        """
        from .weights.load import load_pretrained
        config, tensors = load_pretrained(source, dtype=dtype, revision=revision, cache_dir=cache_dir,
                                          local_files_only=local_files_only)
        return cls.from_tensors(config, tensors, dtype, device)

    @classmethod
    def from_tensors(cls, config: VARSRConfig, tensors: dict[str, Tensor], dtype: torch.dtype,
                     device: str | torch.device) -> VARSR:
        """Build from a checked state dict, which is emptied on the way so that no second copy is held."""
        with torch.device("meta"):
            model = cls(config)
        for name in list(tensors):
            tensor = tensors[name]
            kept = torch.float32 if name.startswith(FULL_PRECISION) else dtype
            tensors[name] = tensor.to(device, kept if tensor.is_floating_point() else None)
        model.load_state_dict(tensors, strict=True, assign=True)
        tensors.clear()
        model.transformer.reset_rope(torch.device(device))
        return model.eval().requires_grad_(False).channels_last()

    def for_inference(self) -> VARSR:
        """Make ready for generation alone: nothing trains, class modulations are tables, no tokenizer encoder.

        Saved (`save_pretrained`), such a model is an inference export: smaller, and for `generate` alone.
        """
        self.eval().requires_grad_(False)
        self.transformer.fold_modulations()
        self.vqvae.drop_encoder()
        self.config = dataclasses.replace(self.config, inference=True)
        return self

    def channels_last(self) -> VARSR:
        """Lay the tokenizer's convolutions out as the CPU and tensor cores like them.

        The prefix encoder stays as it is: in this layout its sums over 1536 channels lose two bits on CPUs.
        """
        self.vqvae.to(memory_format=torch.channels_last)
        return self

    def fingerprint(self) -> str:
        """Which weights these are, as SHA-256: of the signs of the first values of every tensor that generation needs.

        Rounding changes no sign: the same on every device and in every type, before and after `for_inference` and
        packing. Computed from the weights as they are now, in some milliseconds.
        """
        if self.packed_fingerprint is not None:
            return self.packed_fingerprint
        state = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if NOT_IN_FINGERPRINT.match(name):
                continue
            state.update(f"{name} {tuple(tensor.shape)}".encode())
            rows = max(FINGERPRINT_VALUES * len(tensor) // tensor.numel(), 1)
            state.update(tensor[:rows].signbit().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.start_position.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the transformer's arithmetic."""
        return self.transformer.start_position.dtype

    @without_gradients
    def generate(self, lr: Tensor | None = None, labels: Tensor | None = None,
                 options: GenerationConfig | None = None, seed: int | Sequence[int] = 0,
                 on_scale: Callable[[ScaleStep], None] | None = None, refiner_noise: RefinerNoise | None = None,
                 fastvar: FastVARConfig | None = None) -> Tensor:
        """Restore a batch of LR pictures, or draw pictures of classes.

        lr: (B, 3, S, S) in [0, 1], S = `config.image_size`: the LR picture already resized to the output size
            (None for class-to-image). labels: (B,) class of each row (SR: high quality by default).
        options: sampling settings, the model's own by default. seed: one for the batch (row i uses seed + i) or one
            a row; a row's result depends on its own seed alone, not on the batch around it.
        fastvar: token pruning, none by default.
        Returns (B, 3, S, S) float32 in [0, 1]. Raises ValueError for inputs that do not fit the model.
        """
        latent = self.generate_latent(lr, labels, options, seed, on_scale, refiner_noise, fastvar)
        return self.decode(latent, lr, (options or self.config.generation).fidelity)

    @without_gradients
    def decode(self, latent: Tensor, lr: Tensor | None = None, fidelity: float | None = None) -> Tensor:
        """Latent (B, c, N, N) to pictures (B, 3, S, S) in [0, 1]; lr (B, 3, S, S) in [0, 1] as in `generate`.

        fidelity: 0 adds all of the detail branch's output, 1 none; by default what the model's configuration says.
        """
        latent, share = to_device(latent, self.device), self._detail_share(fidelity)
        return (self.vqvae.decode(latent, self._condition(lr), share) + 1) / 2

    def _detail_share(self, fidelity: float | None) -> float:
        return 1.0 - (self.config.generation.fidelity if fidelity is None else fidelity)

    @without_gradients
    def decode_unfinished(self, latent: Tensor, lr: Tensor) -> Tensor:
        """As `decode`, without its last steps, `finish`, and not clamped: parts of a larger picture are put together
        before them."""
        return (self.vqvae.decode_unfinished(to_device(latent, self.device), self._condition(lr)).float() + 1) / 2

    @without_gradients
    def finish(self, decoded: Tensor, lr: Tensor, latent: Tensor, fidelity: float | None = None) -> Tensor:
        """Correction and detail: pictures (B, 3, H, W) of `decode_unfinished`, or parts of what is made of them, and LR
        ones of their size, both in [0, 1], and the cells (B, c, H/f, W/f) they were decoded from, to pictures in
        [0, 1]. H and W are multiples of f; a pixel depends on those up to `finishing_reach` away."""
        decoded, latent = to_device(decoded, self.device) * 2 - 1, to_device(latent, self.device)
        finished = self.vqvae.finish(decoded, self._condition(lr), latent, self._detail_share(fidelity))
        return ((finished + 1) / 2).clamp(0, 1)

    @without_gradients
    def restore(self, lr: Tensor, latent: Tensor, part: Part, fidelity: float | None = None) -> Tensor:
        """A part of the pictures in [0, 1] that a model with a faithful branch makes of LR ones (B, 3, H, W) in [0, 1]
        and the cells (B, c, H/f, W/f) beside them; see `finish` for what it depends on."""
        latent = to_device(latent, self.device)
        restored = self.vqvae.restore(self._condition(lr), latent, self._detail_share(fidelity), part)
        return ((restored + 1) / 2).clamp(0, 1)

    def finishing_reach(self, fidelity: float | None = None) -> int:
        """How many pixels to each side a pixel of `finish` depends on; 0 where it does nothing."""
        return self.vqvae.finishing_reach(self._detail_share(fidelity))

    def _condition(self, lr: Tensor | None) -> Tensor | None:
        """An LR picture as the networks take it: on the device, in [-1, 1]. Raises UserError for whole numbers."""
        if lr is None:
            return None
        require_floats("lr", lr)
        return to_device(lr, self.device) * 2 - 1

    @without_gradients
    def generate_latent(self, lr: Tensor | None = None, labels: Tensor | None = None,
                        options: GenerationConfig | None = None, seed: int | Sequence[int] = 0,
                        on_scale: Callable[[ScaleStep], None] | None = None, refiner_noise: RefinerNoise | None = None,
                        fastvar: FastVARConfig | None = None, given: GivenTokens | None = None,
                        rechoose: Rechoose | None = None, branches: Branches | None = None) -> Tensor:
        """As `generate`, without the decoder: the refined latent (B, c, N, N) float32.

        given: codes that are not drawn but kept; everything after them depends on them as if they had been drawn.
        rechoose: corrects the sampler's choice; `more_smooth`, which chooses no codes, asks nobody.
        branches: further results, which go on from what the coarse scales decided.
        """
        options = options or self.config.generation
        self.config.check_options(options)
        labels = self._labels(lr, labels)
        if given is not None:
            given.check(self.config.vqvae.scales, len(labels))
            if options.more_smooth:
                raise UserError("with more_smooth codes do not say what was drawn: tokens cannot be given")
            given = given.to(self.device)
        seeds = self._seeds(seed, len(labels))
        inputs = {"labels": labels}
        if lr is not None:
            inputs["lr"] = self._condition(lr)
        if refiner_noise is not None:
            inputs["initial"] = to_device(refiner_noise.initial, self.device)
            inputs["fresh"] = to_device(refiner_noise.fresh, self.device)

        def generate(operands: dict[str, Tensor], noise: Noise) -> Tensor:
            return self._generate(operands, noise, options, on_scale, fastvar, given, rechoose, branches)
        if self.graphs is None or any(each is not None for each in (on_scale, given, rechoose, branches)):
            return generate(inputs, Noise(seeds, self.device))
        kind = (options, None if fastvar is None else fastvar.key)
        return self.graphs.generate(kind, generate, inputs, seeds, self.device)

    def _generate(self, inputs: dict[str, Tensor], noise: Noise, options: GenerationConfig,
                  on_scale: Callable[[ScaleStep], None] | None, fastvar: FastVARConfig | None,
                  given: GivenTokens | None = None, rechoose: Rechoose | None = None,
                  branches: Branches | None = None) -> Tensor:
        """The generation itself, from what lies on the device and nothing else, so that it can be recorded.

        inputs: labels (B,); lr (B, 3, S, S) in [-1, 1] for super-resolution; initial and fresh of `RefinerNoise` where
        the caller decides it.
        """
        prefix = self.transformer.prefix_encoder(inputs["lr"]) if "lr" in inputs else None
        generation = Generation(self, inputs["labels"], prefix, options, noise, fastvar, given, rechoose)
        fork, count = None, len(self.config.vqvae.scales)
        for k in range(count):
            if branches is not None and k == branches.scale:
                fork = generation.fork(k, branches.options, Noise(branches.seeds, self.device))
            step = generation.step(k)
            if on_scale is not None:
                on_scale(step)
        if "initial" in inputs:
            refiner_noise = RefinerNoise(inputs["initial"], inputs["fresh"])
        else:
            refiner_noise = self._refiner_noise(self.config.refiner_steps(options), noise)
        latent = generation.refined(refiner_noise)
        if fork is not None:
            for k in range(branches.scale, count):
                fork.step(k)
            copies = fork.refined(branches.refiner_noise.on(self.device))
            branches.keep(copies.unflatten(0, (len(latent), -1)))
        return latent

    def progress(self, scale: int) -> float:
        """How far generation has come at a scale: k / (K-1), class-to-image (k+1) / (K-1)."""
        ahead = 0 if self.config.is_super_resolution else 1
        return (scale + ahead) / (len(self.config.vqvae.scales) - 1)

    def guidance(self, cfg: float, scale: int) -> float:
        """Guidance strength t of a scale."""
        return cfg * self.progress(scale)

    def _labels(self, lr: Tensor | None, labels: Tensor | None) -> Tensor:
        """Classes of the batch, checked against the model and the LR batch."""
        if self.config.is_super_resolution:
            size = self.config.image_size
            if lr is None or lr.ndim != 4 or tuple(lr.shape[1:]) != (3, size, size):
                shape = None if lr is None else tuple(lr.shape)
                raise UserError(f"lr must be (B, 3, {size}, {size}), the LR picture resized to output size; "
                                 f"got {shape}")
            if labels is None:
                labels = torch.full((len(lr),), HIGH_QUALITY, dtype=torch.long)
            if len(labels) != len(lr):
                raise UserError(f"{len(labels)} labels for {len(lr)} pictures")
        elif lr is not None or labels is None:
            raise UserError("a class-to-image model needs labels and no LR picture")
        if not len(labels):
            raise UserError("no pictures: a batch has one at least")
        classes = self.config.transformer.class_rows
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"label {labels.tolist()} out of range: this model knows 0..{classes - 1}")
        return to_device(labels, self.device)

    @staticmethod
    def _seeds(seed: int | Sequence[int], batch: int) -> list[int]:
        if isinstance(seed, Integral):  # NumPy's too
            return [int(seed) + i for i in range(batch)]
        if len(seed) != batch:
            raise UserError(f"{len(seed)} seeds for {batch} pictures: give one, or one a picture")
        return [int(each) for each in seed]

    def _refiner_noise(self, steps: int, noise: Noise) -> RefinerNoise:
        config = self.config.vqvae
        drawn = noise.normal(steps + 1, config.side ** 2, config.latent_channels).transpose(0, 1)
        return RefinerNoise(drawn[0], drawn[1:])

    def refine(self, hidden: Tensor, embedding: Tensor, guidance: float | None, noise: RefinerNoise) -> Tensor:
        """Refiner's residual (B, c, N, N) given the last scale's hidden states and chosen code vectors."""
        batch, _, side, _ = embedding.shape
        chosen = self._code_features(embedding.flatten(2).transpose(1, 2)).repeat(len(hidden) // batch, 1, 1)
        features = (hidden + chosen.to(hidden.dtype)).flatten(0, 1)
        half = batch * side * side
        residual = self.refiner.sample(
            features[:half], None if guidance is None else features[half:], guidance or 0.0,
            noise.initial.flatten(0, 1), noise.fresh.flatten(1, 2))
        return residual.unflatten(0, (batch, side, side)).permute(0, 3, 1, 2)

    def _code_features(self, embedding: Tensor) -> Tensor:
        """Last scale's code vectors (B, N^2, c) as the refiner is told of them: (B, N^2, C)."""
        return self.transformer.token_embedding(embedding.to(self.transformer.token_embedding.weight.dtype))

    def forward(self, image: Tensor, lr: Tensor | None, labels: Tensor, *, settings: LossConfig | None = None,
                refiner_times: Tensor | None = None, refiner_noise: Tensor | None = None) -> Losses:
        """Teacher-forced training losses (VARSR, section 3.5).

        image: HR (B, 3, S, S) in [-1, 1]; lr: the same size, in [-1, 1], or None (class-to-image); labels: (B,).
        `refiner_times` and `refiner_noise` replace the refiner loss's random draws (`DiffusionRefiner.loss`).
        """
        settings = settings or LossConfig()
        with torch.no_grad():
            quantized = self.vqvae.quantizer.encode(self.vqvae.encode(image), settings.error_rate)
        prefix = None if lr is None else self.transformer.prefix_encoder(lr)
        hidden, logits = self.transformer(labels, quantized.inputs, prefix)
        targets = torch.cat(quantized.codes, dim=1)
        token_losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none",
                                       label_smoothing=settings.label_smoothing).view_as(targets)
        cross_entropy = self._balanced(token_losses, settings.scale_balance)
        last = self.config.vqvae.side ** 2
        with torch.no_grad():
            # Super-resolution refines the likeliest codes. Without an LR picture these are nearly always wrong, and a
            # refiner of them would learn to draw anew what sampled codes say already.
            chosen = logits[:, -last:].argmax(-1) if self.config.is_super_resolution else quantized.codes[-1]
            embedding = self.vqvae.quantizer.codebook(chosen).float()
            residual = quantized.residual_last.flatten(2).transpose(1, 2) - embedding
        features = hidden[:, -last:] + self._code_features(embedding)
        refiner = self.refiner.loss(residual.flatten(0, 1), features.flatten(0, 1), refiner_times, refiner_noise)
        hits = (logits.detach().argmax(-1) == targets).float()
        return Losses(cross_entropy + REFINER_LOSS_WEIGHT * refiner, cross_entropy, refiner, hits.mean(), logits,
                      token_losses.detach(), hits)

    def by_scale(self, tokens: Tensor) -> Tensor:
        """Means (K,) over each scale of values (B, tokens)."""
        parts = tokens.split([side * side for side in self.config.vqvae.scales], dim=1)
        return torch.stack([part.mean() for part in parts])

    def _balanced(self, token_losses: Tensor, balance: float) -> Tensor:
        """The mean of (B, tokens) over tokens, mixed with the mean over scales."""
        mean = token_losses.mean()
        return (1 - balance) * mean + balance * self.by_scale(token_losses).mean() if balance else mean
