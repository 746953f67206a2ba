"""Reference cases by their type: how they are read, computed on any device, and checked.

The cases are numbers of the published implementation; weights and pictures come from their recipe, and loading
goes through the public loader from a file in the published format. Only the arrays a case holds are checked.
"""
from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe import CASES, case_weights, picture, write_published_checkpoint
from torch import Tensor

from models.config import HIGH_QUALITY, GenerationConfig
from models.fastvar import FastVARConfig
from models.sampling import guide
from models.varsr import VARSR, RefinerNoise, ScaleStep
from models.weights.load import load_vqvae
from models.weights.published import published_name

FOLDER = Path(os.environ.get("REFERENCE_CASES", CASES))
MARGIN = 1e-3  # a code whose guided logits lie closer than this may fall either way
RELATIVE, IMAGE, LOSS, GRADIENT = 1e-4, 1e-3, 1e-4, 1e-3
CPU = torch.device("cpu")


def cases_of(kind: str) -> list[str]:
    """Names of the cases of a type."""
    files = sorted(FOLDER.glob("*.json"))
    return [f.stem for f in files if json.loads(f.read_text()).get("type") == kind]


def settings_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def arrays_of(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def check_close(actual: Tensor, expected: Tensor, tolerance: float = RELATIVE) -> None:
    """Largest difference within `tolerance` of the largest expected value."""
    expected = expected.float()
    difference = (actual.detach().cpu().float().reshape(expected.shape) - expected).abs().max()
    assert difference <= tolerance * expected.abs().max(), f"off by {difference:.3g}"


def check_refined(actual: Tensor, expected: Tensor) -> None:
    """Relative error in the Euclidean norm.

    Ten guided steps amplify the rounding of single tokens: on the `sr` case a float64 run differs from the expected
    numbers by up to 0.9e-4 of their peak (3e-6 in this norm), so that a bound on the peak would test luck.
    """
    error = torch.linalg.vector_norm(actual.cpu().reshape(expected.shape) - expected)
    assert error <= RELATIVE * torch.linalg.vector_norm(expected), f"off by {error:.3g}"


def check_codes(actual: Tensor, expected: Tensor, margin: float) -> None:
    equal = (actual.cpu() == expected.reshape(actual.shape)).float().mean()
    assert equal == 1 if margin > MARGIN else equal >= 0.99


def check_step(step: ScaleStep, expected: dict[str, Tensor]) -> None:
    """One scale against whatever the case holds of it."""
    k = step.scale
    if f"idx_{k}" in expected:
        check_codes(step.codes, expected[f"idx_{k}"], float(expected["margin"][k]) if "margin" in expected else 0.0)
    if f"f_hat_{k}" in expected:
        check_close(step.f_hat, expected[f"f_hat_{k}"])
    if f"guided_logits_{k}" in expected:
        check_close(step.logits, expected[f"guided_logits_{k}"])


@cache
def weights_of(manifest: str, seed: int) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """A case's weights, which take a second to draw; several cases share theirs."""
    return case_weights(FOLDER, manifest, seed)


def load_case(settings: dict, folder: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> VARSR:
    """The case's model, written as published files and read back by the public loader."""
    manifest = settings.get("manifest", settings["case"])
    weights = weights_of(manifest, settings["weights_seed"])
    return VARSR.from_pretrained(write_published_checkpoint(folder, *weights), device=device, dtype=dtype)


def fastvar_of(settings: dict, model: VARSR) -> FastVARConfig | None:
    """The case's token pruning, its plan checked against the case's counts."""
    if "fastvar" not in settings:
        return None
    values = dict(settings["fastvar"])
    ratios = {int(side): ratio for side, ratio in values.pop("drop_ratio").items()}
    config = FastVARConfig(ratios, **values)
    depth = model.config.transformer.depth
    counts = [[side, layer, config.kept(side, layer), side * side] for side in ratios for layer in range(depth)
              if config.kept(side, layer) < side * side]
    assert counts == settings["kept"]
    return config


@dataclass
class Generated:
    """What a model makes of a `generate` case. lr: in [0, 1]; None for class-to-image."""

    lr: Tensor | None
    steps: list[ScaleStep]
    latent: Tensor
    image: Tensor


def generate_case(model: VARSR, settings: dict, expected: dict[str, Tensor]) -> Generated:
    """The case's generation, where the model is."""
    side, batch = settings["patch_nums"][-1], settings["batch"]
    lr = labels = None
    if "picture_seed" in settings:
        lr = (picture(settings["picture_seed"], batch, settings["size"]) + 1) / 2
    if "labels" in settings:
        labels = torch.tensor(settings["labels"])
    noise = RefinerNoise(expected["noise_init"].view(batch, side * side, -1),
                         expected["noise_steps"].view(-1, batch, side * side, expected["noise_init"].shape[-1]))
    steps = []
    latent = model.generate_latent(lr, labels, GenerationConfig(cfg=settings["cfg"], top_k=settings["top_k"]),
                                   on_scale=steps.append, refiner_noise=noise, fastvar=fastvar_of(settings, model))
    return Generated(lr, steps, latent, model.decode(latent, lr))


def check_generate(name: str, folder: Path, device: torch.device = CPU) -> Generated:
    """A `generate` case in float32."""
    settings, expected = settings_of(name), arrays_of(name)
    model = load_case(settings, folder, device)
    found = generate_case(model, settings, expected)
    if "prefix" in expected:
        with torch.no_grad():
            check_close(model.transformer.prefix_encoder(found.lr.to(device) * 2 - 1), expected["prefix"])
    if "rope_cos" in expected:
        check_close(model.transformer.rotations[..., 0], expected["rope_cos"])
        check_close(model.transformer.rotations[..., 1], expected["rope_sin"])
    for step in found.steps:
        check_step(step, expected)
    refined = (found.latent - found.steps[-1].f_hat).permute(0, 2, 3, 1).flatten(0, 2)
    check_refined(refined, expected["refined"])
    assert (found.image.cpu() - expected["image"]).abs().max() <= IMAGE
    return found


def check_vqvae(name: str, folder: Path, device: torch.device = CPU) -> None:
    """A `vqvae` case in float32."""
    settings, expected = settings_of(name), arrays_of(name)
    _, tensors = weights_of(settings.get("manifest", name), settings["weights_seed"])
    vqvae = load_vqvae(write_published_checkpoint(folder, None, tensors), settings["patch_nums"]).to(device)
    with torch.no_grad():
        latent = vqvae.encode(picture(settings["picture_seed"], settings["batch"], settings["size"]).to(device))
        quantized = vqvae.quantizer.encode(latent)
        found = {
            "latent": latent, "f_hat": quantized.f_hat,
            "residual_last": quantized.residual_last.flatten(2).transpose(1, 2),
            "var_input": quantized.inputs,
            "recon": vqvae.decode(quantized.f_hat), "decoded_latent": vqvae.decode(latent),
        }
    for key, value in found.items():
        check_close(value, expected[key], IMAGE if key in ("recon", "decoded_latent") else RELATIVE)
    for scale, codes in enumerate(quantized.codes):
        assert torch.equal(codes.cpu(), expected[f"idx_{scale}"].reshape(codes.shape))


def check_train(name: str, folder: Path, device: torch.device = CPU) -> None:
    """A `train` case in float32."""
    settings, expected = settings_of(name), arrays_of(name)
    model = load_case(settings, folder, device).requires_grad_(True)
    size = model.config.image_size
    hr = picture(settings["hr_picture_seed"], settings["batch"], size)
    lr = picture(settings["lr_picture_seed"], settings["batch"], size)
    losses = model(hr.to(device), lr.to(device), torch.tensor(settings["labels"], device=device),
                   refiner_times=expected["timesteps"].long().to(device), refiner_noise=expected["noise"].to(device))
    check_close(losses.logits, expected["logits"])
    for value, key in ((losses.cross_entropy, "ce"), (losses.refiner, "refiner_loss"), (losses.total, "loss")):
        assert value.item() == pytest.approx(settings[key], abs=LOSS)
    losses.total.backward()
    norms = {published_name(n): float(p.grad.double().norm()) for n, p in model.named_parameters()
             if p.grad is not None}
    for key, value in settings["grad_norms"].items():
        assert norms[key] == pytest.approx(value, rel=GRADIENT), key
    total = sum(norm ** 2 for norm in norms.values()) ** 0.5
    assert total == pytest.approx(settings["grad_norm_total"], rel=GRADIENT)


def forced_codes(model: VARSR, settings: dict, expected: dict[str, Tensor]) -> list[Tensor]:
    """The codes (B, n_k^2) that a model chooses at each scale of a `generate` case if those before it are the case's
    own."""
    transformer, quantizer, batch = model.transformer, model.vqvae.quantizer, settings["batch"]
    sides = model.config.vqvae.scales
    inputs = [quantizer.next_input(expected[f"f_hat_{k}"].to(model.device), k + 1) for k in range(len(sides) - 1)]
    labels = torch.tensor(settings.get("labels", [HIGH_QUALITY] * batch))
    labels = torch.cat([labels, torch.full_like(labels, model.config.transformer.class_rows - 1)]).to(model.device)
    with torch.inference_mode():
        prefix = None
        if "picture_seed" in settings:
            lr = picture(settings["picture_seed"], batch, settings["size"]).to(model.device)
            prefix = transformer.prefix_encoder(lr).repeat(2, 1, 1)
        _, logits = transformer(labels, torch.cat(inputs, dim=1).repeat(2, 1, 1), prefix)
    parts = logits.split([side * side for side in sides], dim=1)
    return [guide(part[:batch], part[batch:], model.guidance(settings["cfg"], k)).argmax(-1).cpu()
            for k, part in enumerate(parts)]


def expected_latent(settings: dict, expected: dict[str, Tensor]) -> Tensor:
    """What the case's decoder is given: (B, c, N, N)."""
    batch, side = settings["batch"], settings["patch_nums"][-1]
    residual = expected["refined"].view(batch, side, side, -1).permute(0, 3, 1, 2)
    return expected[f"f_hat_{len(settings['patch_nums']) - 1}"] + residual
