"""The house stands: who may import whom, held by reading the source; and what must work without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "probe"
ROOMS = (
    *("values", "organism", "study", "prompts", "store", "models", "capture", "engines"),
    *("behaviour", "mechanism", "interop", "report", "stages", "cli"),
)
TORCH_ROOMS = {"models", "capture", "engines", "stages", "cli"}
LAZY_ROOMS = {"stages", "cli"}
NUMPY_WING = {"behaviour", "mechanism", "interop", "report"}
TORCH_WING = {"models", "capture", "engines"}
ONE_FILE_EACH = ("transformer_lens", "nnsight", "ray", "submitit")
NUMPY_ONLY = {"values", "organism"}


def imports(tree: ast.AST, *, package: str) -> Iterator[tuple[str, bool, str]]:
    """(module, whether inside a function, name of that function) of every import that runs."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, bool, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from walk(other, function)
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, bool(function), function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")
                    base = ".".join([*parts[: len(parts) - child.level + 1], *([base] if base else [])])
                yield from ((_module_of(base, alias.name), bool(function), function) for alias in child.names)
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            yield from walk(child, inner)

    yield from walk(tree, "")


def _module_of(base: str, name: str) -> str:
    """``from base import name`` imports the module ``base.name`` where there is one, else ``base``."""
    folder = SRC.parent.joinpath(*base.split("."))
    return f"{base}.{name}" if (folder / f"{name}.py").exists() or (folder / name).is_dir() else base


def room_of(path: Path) -> str:
    return room_named(path.relative_to(SRC).parts[0].removesuffix(".py"))


def room_named(name: str) -> str:
    """The command line is one room in several files: ``cli``, ``cli_options``, ``cli_store``, ..."""
    return "cli" if name.startswith("cli_") else name


def broken_rules(files: dict[Path, str]) -> list[str]:
    """Every broken import rule in a set of source files (path -> text)."""
    broken: list[str] = []
    users: dict[str, set[Path]] = {name: set() for name in ONE_FILE_EACH}
    edges: dict[str, set[str]] = {}
    for path, text in files.items():
        room = room_of(path)
        module = ".".join(("probe", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, inside, function in imports(ast.parse(text), package=package):
            where = f"{path.relative_to(SRC)} imports {name}"
            top = name.split(".")[0]
            if top in ("experiments", "tests"):
                broken.append(f"{where}: the package knows neither")
            if top in users:
                users[top].add(path)
            if top == "torch":
                conversion = room == "store" and inside and function == "torch"
                if room not in TORCH_ROOMS and not conversion:
                    broken.append(f"{where}: torch belongs to {sorted(TORCH_ROOMS)}")
                if room in LAZY_ROOMS and not inside:
                    broken.append(f"{where}: torch only inside a function here")
            if room in NUMPY_ONLY and top not in {*sys.stdlib_module_names, "numpy", "jaxtyping", "probe"}:
                broken.append(f"{where}: this room knows numpy only")
            if top == "transformers" and room not in TORCH_WING | {"prompts"}:
                broken.append(f"{where}: transformers belongs to prompts and models")
            if top == "probe" and name.count(".") >= 1 and room in ROOMS:
                other = room_named(name.split(".")[1])
                if other not in ROOMS:
                    continue
                if ROOMS.index(other) > ROOMS.index(room):
                    broken.append(f"{where}: {other} stands below {room}")
                if room in NUMPY_WING and other in TORCH_WING:
                    broken.append(f"{where}: the numpy wing never imports the torch wing")
                if other == room and not inside:
                    edges.setdefault(module, set()).add(name)
    broken += [f"{name} is imported by {sorted(map(str, paths))}" for name, paths in users.items() if len(paths) > 1]
    broken += [f"files of one room import each other in a circle: {' -> '.join(loop)}" for loop in circles(edges)]
    return broken


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    found: list[list[str]] = []

    def visit(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
            return
        if not found:
            for other in edges.get(node, ()):
                visit(other, [*trail, node])

    for start in edges:
        visit(start, [])
    return found[:1]


def source() -> dict[Path, str]:
    return {path: path.read_text("utf-8") for path in SRC.rglob("*.py")}


def test_every_room_imports_only_from_rooms_above_it() -> None:
    files = source()
    assert len(files) > 40
    assert broken_rules(files) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("values/cases.py", "import torch"),
        ("values/cases.py", "from probe.store import open_store"),
        ("organism/plan.py", "def f():\n    import torch"),
        ("organism/plan.py", "import pandas"),
        ("store/writer.py", "import torch"),
        ("store/writer.py", "def torch_too():\n    import torch"),
        ("behaviour/scores.py", "from probe.models import find_model"),
        ("report/figures.py", "def late():\n    from probe.capture import run_pass"),
        ("cli.py", "import torch"),
        ("study/study.py", "from transformers import AutoTokenizer"),
        ("stages/run.py", "import tests.conftest"),
        ("prompts/labels.py", "from probe.prompts.rendering import Prompt\n"),
    ],
)
def test_a_planted_violation_is_caught(path: str, line: str) -> None:
    files = source()
    target = SRC / path
    files[target] += f"\n{line}\n"
    if path == "prompts/labels.py":  # a circle needs its other half
        files[SRC / "prompts/rendering.py"] += "\nfrom probe.prompts.labels import label_tokens\n"
    assert broken_rules(files)


WITHOUT_TORCH = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
"""


def test_behaviour_mechanism_store_and_report_import_where_torch_is_not_importable() -> None:
    rooms = ("values", "organism", "study", "store", "behaviour", "mechanism", "interop", "report")
    code = WITHOUT_TORCH + "import probe\n" + "\n".join(f"import probe.{room}" for room in rooms)
    subprocess.run([sys.executable, "-c", code], check=True)
    control = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + "import probe.models.hf"], capture_output=True)
    assert control.returncode != 0
    assert b"is blocked" in control.stderr


def test_help_answers_within_a_second_and_without_torch() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-m", "probe.cli", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        assert "capture" in shown.stdout
    assert min(seconds) < 1.0
    heavy = {"torch", "transformers", "pandas", "matplotlib", "transformer_lens", "nnsight"}
    code = f"import sys, probe.cli; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_capture_loads_no_analysis_and_no_figures() -> None:
    """Each process that captures pays for what it imports: every worker, and every command line."""
    names = ("capture", "preparation", "running", "terminal", "workers")
    code = "import sys\n" + "\n".join(f"import probe.stages.{name}" for name in names)
    code += "\nprint(*{'matplotlib', 'probe.behaviour', 'probe.mechanism', 'probe.report'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
    control = subprocess.run([sys.executable, "-c", f"import probe.report\n{code}"], capture_output=True, text=True)
    assert set(control.stdout.split()) >= {"matplotlib", "probe.report"}


def test_a_backend_is_imported_only_where_it_is_asked_for() -> None:
    code = f"import sys, probe.models.loading; assert not {set(ONE_FILE_EACH)} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_unpickles() -> None:
    banned = ("import pickle", "torch.load(", "import dill", "import joblib", "allow_pickle=True")
    for path, text in source().items():
        weights = re.sub(r"torch\.load\([^()]*\bweights_only=True\b", "", text)  # reads tensors, unpickles nothing else
        assert not [word for word in banned if word in weights], path
