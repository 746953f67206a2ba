"""Draw docs/images/uncertainty.jpg, results with the errors they expect and have: `python docs/draw_uncertainty.py`.
"""
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODEL = "checkpoints/varsr-tiny"
NAMES = ("astronaut", "mountain", "coffee", "cat")


def main() -> None:
    """Restore some of the sample set and write the sheet."""
    from calibration.examples import blurred, luma_error
    from inference.restore import restore_with_errors
    from inference.settings import RestoreSettings, UncertaintySettings, calibration_of, prepare
    from models.varsr import VARSR
    from pictures.rgb import TensorSource, enlarged, read_image, save_picture
    from pictures.sheets import comparison_sheet, error_picture
    model = prepare(VARSR.from_pretrained(ROOT / MODEL))
    settings = RestoreSettings(model.config.generation, uncertainty=UncertaintySettings(
        calibration=calibration_of(ROOT / MODEL, model.config)))
    rows = {}
    for name in NAMES:
        lr, hr = (read_image(ROOT / f"testset/sample/{kind}/{name}.png") for kind in ("LR", "HR"))
        picture, errors, _ = restore_with_errors(model, lr, settings)
        rows[name] = {"bicubic": enlarged(TensorSource(lr), tuple(hr.shape[1:])), "VARSR": picture,
                      "expected error": error_picture(errors),
                      "true error": error_picture(blurred(luma_error(picture, hr))), "original": hr}
    save_picture(comparison_sheet(rows), ROOT / "docs/images/uncertainty.jpg")


if __name__ == "__main__":
    main()
