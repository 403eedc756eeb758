"""An interrupted run says what is saved, ends with its status, and continues."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probe.stages.interrupts import terminable
from probe.store import StoreLock, open_store

STUDY = """\
name: interrupted
model: {id: organism}
personas: builtin:persona-paradox
task: builtin:triage
cases: builtin:triage
limit: 60
capture: {batch_size: 8}
generation: {max_new_tokens: 16}
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_finished_shards_frees_the_lock_and_tells_how_to_continue(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "probe.cli", "capture", "study.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    shards = tmp_path / "cache" / "interrupted" / "shards"
    deadline = time.monotonic() + 600  # of a machine with much other work
    while not list(shards.glob("*.safetensors")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(sent)
    _, said = running.communicate(timeout=300)
    store = open_store(tmp_path / "cache" / "interrupted")
    saved = store.coverage().committed
    assert running.returncode == status
    assert re.search(rf"interrupted: {saved} of 360 rows are saved in .*; run the same command again", said)
    assert 0 < saved < 360
    assert store.runs()[-1]["exit_status"] == status
    with StoreLock.acquire(tmp_path / "cache" / "interrupted"):
        pass
    assert store.verify() == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_commit_waits_for_its_end_and_one_outside_does_not(sent: signal.Signals) -> None:
    before, done = signal.getsignal(sent), []
    with pytest.raises(KeyboardInterrupt), terminable() as interrupts:
        with interrupts.shielded():
            signal.raise_signal(sent)
            done.append("commit")
        done.append("next shard")
    with pytest.raises(KeyboardInterrupt), terminable():
        signal.raise_signal(sent)
        done.append("unshielded")
    assert done == ["commit"]
    assert signal.getsignal(sent) is before


def test_fresh_with_a_model_that_does_not_load_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("limit: 60", "limit: 2"))
    command = [sys.executable, "-m", "probe.cli", "capture", "study.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
    shards = set((tmp_path / "cache" / "interrupted" / "shards").iterdir())
    refused = [*command, "--fresh", "--set", "model.attn_implementation=bogus"]
    ended = subprocess.run(refused, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "does not load as a decoder" in ended.stderr
    assert set((tmp_path / "cache" / "interrupted" / "shards").iterdir()) == shards
    assert subprocess.run([*command, "--fresh"], cwd=tmp_path, env=environment, capture_output=True).returncode == 0
