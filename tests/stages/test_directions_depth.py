"""A direction says how deep its model is, so that other tools' layers can be counted from its file alone."""

from __future__ import annotations

from pathlib import Path

from probe.stages.directions import provenance_of
from probe.store import StoreLock, open_store, open_writer
from tests.store import store_samples as samples


def test_directions_of_a_capture_say_how_deep_the_model_is_and_those_of_an_import_do_not(
    tmp_path: Path,
) -> None:
    for name, told in (("captured", {"n_layers": 12}), ("imported", {})):
        manifest = samples.manifest()
        manifest["capture"] |= told
        with StoreLock.acquire(tmp_path / name) as lock:
            writer = open_writer(tmp_path / name, manifest, lock=lock)
            writer.add_plan(samples.plan())
        assert provenance_of(open_store(tmp_path / name)).get("n_layers") == told.get("n_layers")
