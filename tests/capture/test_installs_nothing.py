"""No backend starts a program, asks pip or reaches for the network while it loads and reads a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capture.architectures import save

GUARDED = """
import json, sys

class Caught(BaseException):
    "Derives from BaseException: no catch-all can swallow it."

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
armed, caught = False, []

def watch(event, args):
    if armed and (event in STARTS or event in ("socket.connect", "urllib.Request")):
        caught.append(event)
        raise Caught(event)

class NoInstaller:
    "importlib.import_module raises no audit event."

    def find_spec(self, name, *more):
        if armed and name.split(".")[0] in ("pip", "ensurepip"):
            caught.append(name)
            raise Caught(name)

sys.addaudithook(watch)
sys.meta_path.insert(0, NoInstaller())

from probe.models import find_model
from probe.models.loading import load_backend
import torch
from probe.models.points import residual_points
from probe.models.protocol import Reads

folder, kinds = sys.argv[1], sys.argv[2:]
armed = True
result = {}
for kind in kinds:
    backend = load_backend(find_model(folder), backend=kind, dtype="float32", device="cpu", attention=None)
    ids = torch.tensor([[11, 12, 13]])
    got = backend.forward(ids, torch.ones_like(ids), Reads(residual_points((0, 3)), torch.tensor([[2]])))
    result[kind] = [backend.facts.backend, float(got.logits.max())]
result["caught while loading"] = list(caught)

def planted(start):
    try:
        start()
    except Caught:
        return True
    return False

import importlib, os, subprocess
result["planted"] = [
    planted(lambda: subprocess.run([sys.executable, "-m", "pip", "install", "torchvision"])),
    planted(lambda: os.system("pip install torchvision")),
    planted(lambda: os.execvp("pip", ["pip", "install", "torchvision"])),
    planted(lambda: importlib.import_module("pip")),
]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = save("llama", tmp_path_factory.mktemp("guarded") / "llama")
    kinds = ("hf", "transformer-lens", "nnsight")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, "-c", GUARDED, str(folder), *kinds],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_every_backend_loads_and_reads_and_starts_no_program(told: dict[str, object]) -> None:
    values = [told[kind] for kind in ("hf", "transformer-lens", "nnsight")]
    assert [name for name, _ in values] == ["hf", "transformer-lens", "nnsight"]  # type: ignore[misc]
    assert told["caught while loading"] == []


def test_an_installation_would_have_been_caught(told: dict[str, object]) -> None:
    assert told["planted"] == [True, True, True, True]
