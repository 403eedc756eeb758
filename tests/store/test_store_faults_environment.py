"""The same bytes whatever the locale, umask, path and clock; many readers; an index that is stale, damaged or wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import store_samples as samples
from fault_flips import everything
from store_processes import HERE, run_python

from probe.store import StoreLock, open_store, open_writer
from probe.store.index import WORTH
from probe.values import StoreError

WRITE = """
import os, sys
os.umask(int(sys.argv[2], 8))
import store_samples as samples
samples.write_store(__import__("pathlib").Path(sys.argv[1]))
"""
DIGEST = """
import hashlib, pathlib, sys
import fault_flips
print(hashlib.sha256(b"".join(fault_flips.everything(pathlib.Path(sys.argv[1])))).hexdigest())
"""


def written(path: Path, umask: int = 0o022, **environment: str) -> dict[str, bytes]:
    """The shards and plans that another process writes at ``path``, under this umask and environment."""
    command = [sys.executable, "-c", WRITE, str(path), oct(umask)]
    settings = {**os.environ, "PYTHONPATH": str(HERE), **environment}
    subprocess.run(command, cwd=path.parent, env=settings, check=True, capture_output=True, timeout=60)
    assert open_store(path).verify() == []
    return {name: content for name, content in samples.content(path).items() if not name.startswith("runs")}


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "tr_TR.UTF-8"},
        {"PYTHONHASHSEED": "7"},
    ],
)
def test_a_locale_without_utf8_and_another_hash_seed_write_the_same_bytes(tmp_path, environment):
    assert written(tmp_path / "s", **environment) == written(tmp_path / "plain")


@pytest.mark.parametrize(
    "name", ["with spaces", "Ünïcødé 🩺 名", "'quoted' & $HOME", "-rf", "%2e%2e", "#fragment?query"]
)
def test_any_name_of_the_folder_writes_the_same_bytes_and_is_read_by_it(tmp_path, name):
    assert written(tmp_path / name) == written(tmp_path / "plain")
    assert len(open_store(str(tmp_path / name)).table()) == 12


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o022, 0o000])
def test_every_file_has_the_mode_that_the_umask_asks_for(tmp_path, umask):
    written(tmp_path / "s", umask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "s").rglob("*") if file.is_file()}
    assert modes == {0o666 & ~umask}


def test_a_clock_that_jumps_back_changes_no_shard_and_the_runs_stay_apart(tmp_path, monkeypatch):
    plan = samples.plan()
    for seconds in (2_000_000_000, 1_000_000_000, 0):
        monkeypatch.setattr("probe.store.runs.time.time_ns", lambda seconds=seconds: seconds * 10**9)
        with StoreLock.acquire(tmp_path / "s") as lock:
            writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
            writer.add_plan(plan)
            writer.start_run({"clock": seconds})
            if rows := writer.pending()[:4]:
                writer.commit([samples.record(row) for row in rows])
            writer.finish_run(0)
    store = open_store(tmp_path / "s")
    assert sorted(run["clock"] for run in store.runs()) == [0, 1_000_000_000, 2_000_000_000]
    shards = {shard.name for shard in store.shards}
    assert shards == {shard.name for shard in open_store(samples.write_store(tmp_path / "plain")).shards}
    assert store.verify() == []


def test_eight_readers_at_once_read_what_one_reads(write):
    path = write()
    alone = everything(path)
    with ThreadPoolExecutor(8) as readers:
        assert list(readers.map(everything, [path] * 8)) == [alone] * 8
    with ThreadPoolExecutor(2) as processes:
        assert len(set(processes.map(lambda _: run_python(DIGEST, path), range(2)))) == 1


@pytest.fixture
def indexed(tmp_path) -> Path:
    """A store of so many shards that its writer leaves an index."""
    plan = samples.plan(("nurse",), WORTH + 3, per_shard=1)
    with StoreLock.acquire(tmp_path / "indexed") as lock:
        writer = open_writer(tmp_path / "indexed", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.start_run({})
        for row in plan.rows:
            writer.commit([samples.record(row)])
        writer.finish_run(0)
    assert (tmp_path / "indexed" / "index.parquet").exists()
    return tmp_path / "indexed"


def test_a_stale_damaged_or_foreign_index_changes_nothing_that_is_read(indexed):
    file = indexed / "index.parquet"
    whole, expected = file.read_bytes(), everything(indexed)
    file.unlink()
    assert everything(indexed) == expected
    damaged = [b"", whole[:1], whole[: len(whole) // 2], whole[:-1], b"PAR1", bytes(len(whole)), b'{"schema": 1}']
    damaged += [whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in range(3, len(whole), len(whole) // 12)]
    for content in damaged:
        file.write_bytes(content)
        assert everything(indexed) == expected
    assert open_store(indexed).verify() == []


def test_an_index_older_than_the_shards_shows_new_rows_and_no_lost_ones(indexed):
    old = (indexed / "index.parquet").read_bytes()
    lost = open_store(indexed).shards[5]
    content, rows = lost.path.read_bytes(), [row["row_id"] for row in lost.rows]
    lost.path.unlink()
    with pytest.warns(UserWarning, match=f"holds {WORTH + 2} of {WORTH + 3} rows"):
        assert not set(open_store(indexed).table().row_id) & set(rows)
    plan = samples.plan(("nurse",), WORTH + 5, per_shard=1)
    with StoreLock.acquire(indexed) as lock:  # a run that is killed before it can write the index
        writer = open_writer(indexed, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for row in writer.pending():
            writer.commit([samples.record(row)])
    assert (indexed / "index.parquet").read_bytes() == old
    assert len(open_store(indexed).table()) == WORTH + 5
    assert lost.path.read_bytes() == content


def test_an_index_that_lies_about_rows_is_refused_before_a_value_is_returned(indexed):
    import pyarrow.parquet as pq

    from probe.store.index import FILE, _digest

    table = pq.read_table(indexed / FILE)
    for key in ("row_ids", "prompt_shas"):
        values = table.column(key).to_pylist()
        values[0], values[1] = values[1], values[0]
        table = table.set_column(table.schema.get_field_index(key), key, [values])
    lines = [table.column(key).to_pylist() for key in ("name", "size", "row_ids", "prompt_shas")]
    marks = {**table.schema.metadata, b"keys_sha256": _digest(lines).encode()}
    pq.write_table(table.replace_schema_metadata(marks), indexed / FILE)
    view = open_store(indexed).select()
    for read in (
        view.table,
        view.texts,
        view.label_logp,
        lambda: list(view.records()),
        lambda: view.resid(layer=1, position="answer").numpy(),
    ):
        with pytest.raises(StoreError, match=r"index\.parquet is wrong about .*delete it"):
            read()
