"""The house stays as it is: rooms import what is below them, and nothing imports in a circle."""
from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each room may import beside itself; docs/architecture.md draws it.
BELOW: dict[str, set[str]] = {
    "utils": set(),
    "models": {"utils"},
    "pictures": {"utils"},
    "dataloader": {"pictures", "models", "utils"},
    "evaluation": {"pictures", "models", "utils"},
    "training": {"evaluation", "dataloader", "pictures", "models", "utils"},
    "inference": {"evaluation", "pictures", "models", "utils"},
    "calibration": {"inference", "evaluation", "dataloader", "pictures", "models", "utils"},
    "web": {"inference", "pictures", "models", "utils"},
}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))}
# A class that loads itself needs its loader, which needs the class: one import inside a function.
LAZY_CIRCLES = {("models.varsr", "models.weights.load")}
WHERE_A_PICTURE_GOES = 45  # files that an LR picture's plain way through test_tile.py may touch
# What serves nothing but a flag: --uncertainty, --lr_consistency, --save_tokens and --resume_from, --fast, --compile.
ADDED_BY_FLAGS = {"inference.evidence", "inference.uncertainty", "inference.lr_statistics", "models.error_model",
                  "inference.consistency", "inference.rechoose", "inference.tokens", "inference.redo",
                  "models.fastvar", "models.speed.graphs"}
MOST_ADDED = 10
WHERE_A_BATCH_GOES = 55  # the same for a training batch of the super-resolution stage
UTILITIES = 12


def imports(name: str, inside_functions: bool = True) -> set[str]:
    """Our modules that a module imports; what is imported for type checkers alone does not count."""
    found: set[str] = set()
    path = MODULES.get(name, ROOT / f"{name}.py")
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1]] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            found.update(inner if (inner := f"{module}.{alias.name}") in MODULES else module for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)
    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & set(MODULES)


def reached(name: str) -> set[str]:
    """Our modules that a module needs, itself included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(module)
    return seen


@pytest.mark.parametrize("room", BELOW)
def test_imports_point_down(room: str) -> None:
    allowed = {room} | BELOW[room]
    wrong = [f"{module} imports {other}" for module in MODULES if module.split(".")[0] == room
             for other in imports(module) if other.split(".")[0] not in allowed]
    assert not wrong


def test_no_room_imports_a_script() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for name, path in MODULES.items():
        names = {alias.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Import) for alias in node.names}
        assert not names & scripts, name


def test_nothing_imports_in_a_circle() -> None:
    """Neither when modules are loaded nor, but for what is named above, inside functions."""
    edges = {name: {other for other in imports(name) if (name, other) not in LAZY_CIRCLES} - {name}
             for name in MODULES}
    while free := [name for name, others in edges.items() if not others & edges.keys()]:
        for name in free:
            del edges[name]
    assert not edges
    assert all(other not in imports(name, inside_functions=False) for name, other in LAZY_CIRCLES)


def test_a_picture_goes_through_few_files() -> None:
    assert len(reached("test_tile") - ADDED_BY_FLAGS) <= WHERE_A_PICTURE_GOES


def test_flags_add_few_files() -> None:
    assert reached("test_tile") >= ADDED_BY_FLAGS and len(ADDED_BY_FLAGS) <= MOST_ADDED


def test_there_are_few_utilities() -> None:
    assert len([name for name in MODULES if name.startswith("utils.")]) <= UTILITIES


def test_pictures_are_opened_in_one_place() -> None:
    """There, only the kinds that are read are opened, and no larger ones than are allowed."""
    opening = {name for name, path in MODULES.items() if "Image.open(" in path.read_text(encoding="utf-8")}
    assert opening == {"pictures.file_reader"}


def test_every_package_and_module_says_what_it_is_for() -> None:
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


@pytest.mark.parametrize("path", sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")]),
                         ids=lambda path: path.stem)
def test_what_benchmarks_import_is_there(path: Path) -> None:
    """Nothing else runs them: a name that moved would be missed by the next one who measures."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 \
                and node.module.split(".")[0] in {*BELOW, "benchmarks"}:
            module = importlib.import_module(node.module)
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(inner), inner


@pytest.mark.parametrize("script", ["test_varsr", "test_tile", "test_varsr_fastvar", "test_C2I", "evaluate", "app",
                                    "train_vqvae"])
def test_help_comes_without_torch(script: str) -> None:
    code = f"import sys, {script}; {script}.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_training_batch_goes_through_few_files() -> None:
    """What `train.py --stage sr` loads: other stages stay out."""
    code = ("import sys, train, training.log, training.run, training.transformer, models.weights.load\n"
            f"rooms = {set(BELOW)!r} | {{'train'}}\n"
            "files = [name for name, module in sys.modules.items() if name.split('.')[0] in rooms\n"
            "         and not (module.__file__ or '').endswith('__init__.py')]\n"
            "print(len(files))")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(found.stdout) <= WHERE_A_BATCH_GOES
