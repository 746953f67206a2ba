"""Programs that the docs show, run as they stand; links that lead somewhere."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")])
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
# What the docs tell people to type: scripts and modules, without their flags.
COMMANDS = sorted({found for page in PAGES for found in re.findall(
    r"(?:python3? )?((?:-m (?:benchmarks|dataloader|models)[\w.]+)|(?:(?<=python )|benchmarks/)[\w/]+\.py)",
    page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_docs_start(command: str) -> None:
    done = subprocess.run([sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs_of_the_api_page_run(number: int, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(PROGRAMS[number], f"docs/api.md, program {number + 1}", "exec"), {"__name__": "__main__"})
    said = ("(64, 48) to (256, 192)", "torch.Size([4, 3, 128, 128]) c", "restored (256, 192)",
            "levels on average", "changed inside: True outside: False")[number]
    assert said in capsys.readouterr().out


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "examples")
    notebook = json.loads((ROOT / "examples" / "scales.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    sides = [side for side, _ in names["steps"]]
    assert sides == list(names["model"].config.vqvae.scales) and len(names["pictures"]) == len(sides) + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []
