"""What is on a machine and in a store, for people. Knows versions and checks; computes no result."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from probe.stages.terminal import console, say
from probe.store import open_store
from probe.store.files import size_text
from probe.store.repair import QUARANTINE
from probe.store.seal import read_seal
from probe.values.visible import visible

PACKAGES = (
    *("persona-probe", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn"),
    *("statsmodels", "pandas", "pyarrow", "matplotlib", "transformer-lens", "nnsight", "ray", "submitit"),
)
ENVIRONMENT = ("HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NO_COLOR", "TQDM_DISABLE")


def describe_store(path: str | Path) -> int:
    """Print what a store holds; 3 where rows are missing or failed, else 0."""
    store = open_store(path, warn=False)
    coverage = store.coverage()
    model, capture = store.manifest.get("model", {}), store.manifest["capture"]
    say(f"store {path}")  # not a title of the table, which would cut a long path
    table = Table(show_header=False)
    seal = read_seal(store.place)
    size = sum(shard.file.entry.size for shard in store.shards)
    for key, value in {
        "study": str(store.study.get("name", "")),
        "model": f"{model.get('id', 'unknown')}  (weights {model.get('weights_sha256', 'unknown')[:12]})",
        **({"origin": "imported"} if "imported" in store.manifest else {}),
        "rows": str(coverage),
        "shards": f"{len(store.shards)}, {size_text(size)} in all{', sealed' if seal else ''}",
        "residual points": ", ".join(map(str, capture["layers"])),
        **{f"{own.name}, {own.width} wide": f"blocks {', '.join(map(str, own.layers))}" for own in store.layout.inner},
        "positions": ", ".join(store.layout.positions),
        "dtype, width": f"{capture.get('dtype', 'unknown')}, {capture.get('d_model', 'unknown')}",
        "personas": ", ".join(persona["id"] for persona in store.plan.personas),
        "cases": str(len(store.plan.cases)),
        "runs": str(len(store.runs())),
        "in quarantine": str(sum(not name.endswith(".note.json") for name in store.place.list(QUARANTINE))),
    }.items():
        table.add_row(key, Text(visible(value)))
    console().print(table)
    failures = store.failures()
    for kind, rows in failures.groupby("kind"):
        first = rows.iloc[0]
        say(f"{len(rows)} failed: {kind} (first {first['persona']}/{first['case']}: {first['reason']})")
    return 0 if coverage.committed == coverage.planned else 3


def describe_machine() -> None:
    """Print versions, devices, memory, disk and the environment variables that matter here."""
    import torch

    table = Table(title="probe doctor", show_header=False)
    table.add_row("python", Text(f"{platform.python_version()} ({sys.executable})"))
    table.add_row("platform", platform.platform())
    for name in PACKAGES:
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    other = "mps" if torch.backends.mps.is_available() else "none"
    table.add_row("accelerators", Text(", ".join(devices) or other))
    table.add_row("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if hasattr(os, "sysconf"):
        table.add_row("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB")
    table.add_row("free disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB")
    for name in ENVIRONMENT:
        table.add_row(name, Text(os.environ.get(name, "not set")))
    console().print(table)
