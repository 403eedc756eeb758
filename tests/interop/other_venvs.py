"""Other tools in virtual environments of their own, which are kept between runs. Knows pip; knows no tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest


def venv_with(name: str, *packages: str, without_dependencies: tuple[str, ...] = (), lend: bool = False) -> Path:
    """The python of a virtual environment that holds packages; the test is skipped where they cannot be fetched.

    ``lend`` lets it see the packages of this environment (torch, transformers) behind its own, which spares gigabytes.
    """
    folder = Path(sys.prefix) / "interop" / name
    python = folder / "bin" / "python"
    wanted = json.dumps([*packages, *without_dependencies])
    done = folder / "installed.json"
    if done.exists() and done.read_text("utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if lend:
        inner = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        Path(inner.stdout.strip(), "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for flags, names in (((), packages), (("--no-deps",), without_dependencies)):
        if names:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *flags, *names]
            ran = subprocess.run(pip, capture_output=True, text=True)
            if ran.returncode:
                last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"{', '.join(names)} cannot be installed here: {last}")
    done.write_text(wanted)
    return python


def run_in(python: Path, code: str, *arguments: str | Path) -> Any:
    """What a script in another environment prints as JSON in its last line; ``sys.argv[1:]`` are the arguments."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(
        [str(python), "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])
