"""A Ray that is not there, or does not start in time, is one sentence; a stand-in raises what Ray raises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.engines import Engine, Work
from probe.engines.ray_cluster import start_ray
from tests.engines.study_driver import study

LATE = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)
"""Ray 2.60 raises it as a bare ``Exception`` (ray/_private/node.py)."""


@dataclass
class StandIn:
    """Ray as far as it is met before it runs."""

    error: Exception
    asked: str | None = "nothing"

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str | None, **_: Any) -> None:
        self.asked = address
        raise self.error


@pytest.mark.parametrize("error", [Exception(LATE), RuntimeError(LATE), ConnectionError(LATE)])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "Ray did not start on this machine"),
        ("local", "Ray did not start"),
        ("auto", "no Ray cluster answers at"),
    ],
)
def test_a_ray_that_does_not_start_in_time_is_one_sentence_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, address: str | None, said: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = StandIn(error)
    monkeypatch.setattr("probe.engines.ray_cluster.require_ray", lambda: ray)
    work = Work("tests.engines.engine_tasks:note", str(tmp_path))
    with pytest.raises(probe.ProbeError, match=rf"{said}.*{LATE}") as told:
        start_ray(Engine("ray", address=address), work, tickets=1, gpus=0, check=lambda: "")
    assert ray.asked == address
    assert told.value.exit_status == 1
    assert "\n" not in str(told.value)


def test_a_study_whose_ray_does_not_start_leaves_no_store_and_runs_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("probe.engines.ray_cluster.require_ray", lambda: StandIn(Exception(LATE)))
    engine, store = Engine("ray"), tmp_path / "store"
    with pytest.raises(probe.ProbeError, match="Ray did not start"):
        probe.run(study(2), store=store, policy=probe.CapturePolicy(engine=engine))
    assert not store.exists()
    assert probe.run(study(2), store=store).coverage().committed == 4
