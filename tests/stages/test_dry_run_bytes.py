"""What ``--dry-run`` says that a run will take, against what the run then takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import probe
from tests.tiny_models import tiny_tokenizer

MIB = 2**20


def save_model(folder: Path, **sizes: int) -> Path:
    """A random Llama that is large enough in one respect for it to show in the memory of a process."""
    tokenizer = tiny_tokenizer()
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(
        "llama", **{**ends, "vocab_size": 600, "max_position_embeddings": 2048, "num_attention_heads": 4, **sizes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # it goes on to the end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def study_of(folder: Path, new: int, limit: int, **capture: Any) -> dict[str, Any]:
    return {
        "name": "bytes",
        "model": {"id": str(folder)},
        "personas": "builtin:persona-paradox",
        "task": "builtin:triage",
        "cases": "builtin:triage",
        "limit": limit,
        "capture": {"positions": ["prompt_end", "case_mean", "response_mean"], **capture},
        "generation": {"max_new_tokens": new},
    }


TOLD = {"tensors": "tensors on disk", "memory": "memory at the peak", "held": "libraries and plan"}


def told(study: dict[str, Any]) -> dict[str, float]:
    """Bytes of tensors and of memory that a dry run prints, and what of the memory its process held before."""
    text = ended(TELL, json.dumps(study))
    found = {name: re.search(rf"{words}\D+([\d.]+) MiB", text) for name, words in TOLD.items()}
    assert all(found.values()), text
    return {name: float(match[1]) * MIB for name, match in found.items() if match}


def used(study: dict[str, Any], store: Path) -> dict[str, int]:
    """The most that a process which runs the study and nothing else holds, and what it held before the model."""
    return {name: int(value) for name, value in json.loads(ended(RUN, json.dumps(study), str(store))).items()}


def ended(script: str, *words: str) -> str:
    """What a script prints in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


TELL = """
import json, sys
import probe.stages.terminal
from probe.stages.dry_run import dry_run
from probe.study import Study
probe.stages.terminal.WIDE = 1000  # one line a row
dry_run(Study.from_mapping(json.loads(sys.argv[1])), store="nowhere")
"""

RUN = """
import json, sys
from pathlib import Path
import probe.stages.capture as stage
import probe.stages.run  # as `probe run` does
from probe.stages.costs import held_bytes
from probe.study import Study

held, usual = [], stage.load_model

def load_model(resolved):
    held.append(held_bytes())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    return usual(resolved)

stage.load_model = load_model
outcome = stage.capture(Study.from_mapping(json.loads(sys.argv[1])), store=sys.argv[2])
assert outcome.exit_status == 0, outcome
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "held": held[0]}))
"""


def tensor_bytes(store: Path) -> int:
    return sum(
        array.nbytes
        for position in ("prompt_end", "case_mean", "response_mean")
        for array in [probe.open_store(store).select().stack(position=position)]
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process's peak is told by Linux")
@pytest.mark.parametrize(
    ("sizes", "new", "limit", "capture"),
    [
        (  # keys and values are most of it
            {"hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 12},
            40,
            4,
            {"batch_size": 24},
        ),
        (  # weights are
            {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 6, "num_key_value_heads": 1},
            2,
            1,
            {"batch_size": 2, "layers": [0, 3]},
        ),
        (  # logits are, and activations are large on disk
            {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 200_000},
            4,
            2,
            {"batch_size": 24},
        ),
    ],
)
def test_tensor_bytes_are_told_within_5_percent_and_the_peak_of_memory_within_30(
    tmp_path: Path, sizes: dict[str, int], new: int, limit: int, capture: dict[str, Any]
) -> None:
    folder = save_model(tmp_path / "model", **{"num_key_value_heads": 4, **sizes})
    study = study_of(folder, new, limit, **capture)
    expected, found = told(study), used(study, tmp_path / "store")
    assert expected["memory"] == pytest.approx(found["peak"], rel=0.3)
    # What the model and its rows take, without what any process holds that has imported torch.
    assert expected["memory"] - expected["held"] == pytest.approx(found["peak"] - found["held"], rel=0.3)
    assert expected["tensors"] == pytest.approx(tensor_bytes(tmp_path / "store"), rel=0.05)
