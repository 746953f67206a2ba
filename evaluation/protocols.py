"""Named evaluation protocols: which metrics, and every choice that changes their values.

Plain data, so that a protocol can be printed and written beside the numbers it gave.
"""
from __future__ import annotations

from dataclasses import dataclass

WINDOW = "11x11 Gaussian, sigma 1.5, where it fits"
PLANES = {
    "y_studio": "BT.601 Y in 16..235, not rounded",
    "y_studio_rounded": "BT.601 Y in 16..235, rounded to whole levels",
    "gray": "BT.601 Y in 0..255, rounded to whole levels",
    "rgb": "RGB",
    "picture": "RGB",  # the metric makes its own planes
}


@dataclass(frozen=True)
class Metric:
    """One column of the results. All pictures are rounded to 8 bits first; the data range is 255.

    kind names our own function; `pyiqa` names the model of a learned metric instead.
    """

    column: str
    label: str
    kind: str = ""
    planes: str = "picture"
    crop: int = 0  # pixels left out at every edge
    contrast_floor: float = -1.0  # of SSIM's contrast and structure factor
    details: str = ""
    pyiqa: str = ""
    higher_is_better: bool = True
    needs_reference: bool = True
    of_folders: bool = False  # one value for a whole folder

    @property
    def variant(self) -> str:
        """The choices in words."""
        if self.pyiqa:
            return f"pyiqa '{self.pyiqa}'" + (f", {self.details}" if self.details else "")
        parts = [PLANES[self.planes], "data range 255", f"crop {self.crop}"]
        if self.kind == "ssim":
            parts.append("negative contrast factors count as 0" if self.contrast_floor == 0 else "no clipping")
        return ", ".join(parts + ([self.details] if self.details else []))


@dataclass(frozen=True)
class Protocol:
    """A named list of metrics."""

    name: str
    source: str
    metrics: tuple[Metric, ...]

    def describe(self) -> str:
        """One line a metric: column, direction, variant."""
        width = max(len(metric.column) for metric in self.metrics)
        lines = [f"protocol {self.name}: {self.source}"]
        lines += [f"  {metric.column:{width}}  {'higher' if metric.higher_is_better else 'lower '} is better; "
                  f"{metric.variant}" for metric in self.metrics]
        return "\n".join(lines)


def _luma_pair(crop: int = 0) -> tuple[Metric, Metric]:
    """PSNR and SSIM as BasicSR computes them on luma."""
    return (Metric("psnr_y", "PSNR-Y (dB)", "psnr", "y_studio", crop),
            Metric("ssim_y", "SSIM-Y", "ssim", "y_studio", crop, details=WINDOW))


PYIQA_SSIM = Metric("ssim_y", "SSIM-Y", "ssim", "y_studio_rounded", contrast_floor=0.0, details=WINDOW)
STRUCTURAL = (
    Metric("ms_ssim", "MS-SSIM", "ms_ssim", "gray", contrast_floor=0.0, details=f"five scales, {WINDOW}"),
    Metric("gmsd", "GMSD", "gmsd", "gray", details="Prewitt at half size, c = 170", higher_is_better=False),
    Metric("fsim", "FSIMc", "fsim", details="YIQ, shorter side near 256 pixels"),
)
NIQE = Metric("niqe", "NIQE", "niqe", "gray", details="blocks of 96 pixels, published pristine statistics",
              higher_is_better=False, needs_reference=False)
PIQE = Metric("piqe", "PIQE", "piqe", "gray", details="blocks of 16 pixels, levels stretched to 255",
              higher_is_better=False, needs_reference=False)
ST_LPIPS = Metric("st_lpips", "ST-LPIPS", "st_lpips", details="shift-tolerant, AlexNet, weights of stlpips-pytorch",
                  higher_is_better=False)
LPIPS = Metric("lpips", "LPIPS", pyiqa="lpips", details="AlexNet, version 0.1", higher_is_better=False)
DISTS = Metric("dists", "DISTS", pyiqa="dists", higher_is_better=False)
MUSIQ = Metric("musiq", "MUSIQ", pyiqa="musiq", details="KonIQ-10k", needs_reference=False)
MANIQA = Metric("maniqa", "MANIQA", pyiqa="maniqa", details="KonIQ-10k", needs_reference=False)
MANIQA_PIPAL = Metric("maniqa_pipal", "MANIQA", pyiqa="maniqa-pipal", details="PIPAL", needs_reference=False)
CLIPIQA = Metric("clipiqa", "CLIPIQA", pyiqa="clipiqa", needs_reference=False)
FID = Metric("fid", "FID", pyiqa="fid", details="whole folders", higher_is_better=False, of_folders=True)

# What restoring writes into metrics.csv beside PSNR and SSIM
PAPER_PERCEPTUAL = (ST_LPIPS, LPIPS, DISTS, NIQE, MUSIQ, MANIQA, CLIPIQA, FID)

PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("varsr-paper", "Qu et al. 2025: full image, luma as BasicSR computes it, pyiqa's learned metrics",
             (*_luma_pair(), *STRUCTURAL, PIQE, *PAPER_PERCEPTUAL)),
    Protocol("osediff", "Wu et al. 2024: pyiqa throughout, full image",
             (_luma_pair()[0], PYIQA_SSIM, *STRUCTURAL, PIQE, ST_LPIPS, LPIPS, DISTS, NIQE, MUSIQ, MANIQA_PIPAL,
              CLIPIQA, FID)),
    Protocol("basicsr-y", "BasicSR's test on luma: 4 pixels of every edge are left out",
             _luma_pair(crop=4)),
)}
