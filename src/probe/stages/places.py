"""Where a study's captures and results lie. Knows folders; opens none."""

from __future__ import annotations

from pathlib import Path

from probe.study import Study
from probe.values import ProbeError


def store_path(study: Study, store: str | Path | None = None) -> str | Path:
    """Where a study's captures lie: ``cache/<study name>`` unless told otherwise; a URL stays one."""
    return store if store is not None else Path("cache") / study.name


def beside(path: str | Path, suffix: str) -> str | Path:
    """Where a store lies that belongs to another one."""
    return f"{path.rstrip('/')}{suffix}" if isinstance(path, str) else path.with_name(path.name + suffix)


def folder_beside(path: str | Path, suffix: str, name: str) -> Path:
    """A folder of this machine that belongs to a store: beside it, or ``cache/<name>...`` where that is a URL."""
    if isinstance(path, str) and "://" in path:
        return Path("cache") / f"{name}{suffix}"
    return Path(beside(path, suffix))


def figures_path(name: str, out: Path | None) -> Path:
    """Where a study's tables, figures and report go: ``figures/<name>`` unless told otherwise.

    Raises:
        ProbeError: something that is no folder stands there, or above it.
    """
    folder = out if out is not None else Path("figures") / name
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ProbeError(f"results are written into a folder, but {path} is a file; choose another with --out")
            break
    return folder
