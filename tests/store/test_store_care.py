"""Damage is found at the level that reads it, moved aside and captured again; what nobody reads can be dropped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_samples as samples

from probe.stages.store_care import repair_store, verify_store
from probe.store import Share, StoreLock, open_store, open_writer, seal_store
from probe.store.compact import compact
from probe.store.repair import repair, unseal
from probe.store.shard_format import encode, header_name, row_crcs
from probe.store.verify import LEVELS
from probe.values import MissingShard, NewerVersion, StoreError, canonical_json, sha256_of


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def fill(path: Path) -> int:
    """Capture what is pending; how many rows that was."""
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(samples.plan())
        pending = writer.pending()
        for shard in sorted({row.shard for row in pending}):
            writer.commit([samples.record(row) for row in pending if row.shard == shard])
        return len(pending)


def damage(path: Path, kind: str) -> Path:
    """Damage the first shard in one way."""
    shard = open_store(path).shards[0]
    spec = shard.header.tensors["resid.answer.L01"]
    if kind == "truncated":
        shard.path.write_bytes(shard.path.read_bytes()[:-1])
    elif kind == "header":
        flip(shard.path, shard.path.read_bytes().index(b"nurse"))
    elif kind == "activation":
        flip(shard.path, spec.start + 2 * spec.row_bytes)
    else:
        flip(shard.path, shard.header.tensors["crc.label_mass"].start)
    return shard.path


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("truncated", {"quick", "crc", "full"}),
        ("header", {"quick", "crc", "full"}),
        ("activation", {"crc", "full"}),
        ("checksum", {"crc", "full"}),
    ],
)
def test_each_level_sees_what_it_reads(write, kind, seen):
    path = write()
    assert all(open_store(path).verify(level) == [] for level in LEVELS)
    shard = damage(path, kind)
    found = {level for level in LEVELS if open_store(path).verify(level)}
    assert found == seen
    assert {problem.file for problem in open_store(path).verify()} == {shard.name}


def test_a_header_that_is_not_canonical_is_found_by_the_full_check_alone(write):
    path = write()
    shard = open_store(path).shards[0].path
    whole = shard.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = json.dumps(json.loads(whole[8 : 8 + length]), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    shard.unlink()
    renamed = shard.with_name(f"{header_name(text)}.safetensors")
    renamed.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    assert open_store(path).verify("crc") == []
    (problem,) = open_store(path).verify("full")
    assert "not canonical" in problem.message


@pytest.mark.parametrize("kind", ["truncated", "header", "activation"])
def test_repair_moves_the_damaged_shard_with_a_note_and_the_next_run_restores_the_very_bytes(write, kind):
    path = write()
    before = samples.content(path)
    shard = damage(path, kind)
    harmed = shard.read_bytes()
    with StoreLock.acquire(path) as lock:
        assert repair(lock).moved == (f"shards/{shard.name}",)
        assert repair(lock).moved == ()
    kept = path / "quarantine" / f"shards.{shard.name}"
    assert kept.read_bytes() == harmed
    note = json.loads(kept.with_name(f"{kept.name}.note.json").read_bytes())
    assert note["file"] == f"shards/{shard.name}"
    assert note["reasons"]
    assert open_store(path).verify() == []
    assert fill(path) == 4
    after = {name: content for name, content in samples.content(path).items() if not name.startswith("quarantine")}
    assert after == before
    damage(path, kind)
    with StoreLock.acquire(path) as lock:
        repair(lock)
    assert len(list((path / "quarantine").glob("*.safetensors*"))) == 4  # a second one of the same name, and its note


@pytest.mark.parametrize("file", ["failures", "runs", "plan", "readout.safetensors"])
def test_repair_moves_damaged_records_too_and_the_store_goes_on(write, file):
    path, plan = write(), samples.plan(n_cases=7)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.write_readout({"u": np.ones((3, 8), np.float32)}, {})
        writer.start_run({})
        writer.add_plan(plan)
        writer.fail(plan.rows[6].cell, "PromptTooLong", "too long", plan.rows[6].prompt_sha)
        writer.finish_run(3)
    harmed = path / file if file.endswith("s") and "." in file else max((path / file).glob("*.json*"))
    harmed.write_bytes(harmed.read_bytes()[:-3])
    (problem,) = open_store(path).verify()
    assert path / problem.file == harmed
    with StoreLock.acquire(path) as lock:
        assert repair(lock).moved == (str(harmed.relative_to(path)),)
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        assert len(writer.pending()) == (2 if file == "failures" else 1)
    assert open_store(path).verify() == []
    assert len(open_store(path, warn=False).table()) == 12


def test_a_row_that_failed_and_was_captured_later_is_pending_again_when_its_shard_is_lost(tmp_path):
    path, plan = tmp_path / "s", samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.fail(plan.rows[0].cell, "OutOfMemory", "too large", plan.rows[0].prompt_sha)
        writer.fail(plan.rows[1].cell, "PromptTooLong", "of an earlier text", "another")
        again = [row for row in writer.pending(lambda kind: kind == "OutOfMemory") if row.shard == 0]
        writer.commit([samples.record(row) for row in again])
    assert [file.stem for file in (path / "failures").iterdir()] == [plan.rows[1].cell.row_id]
    damage(path, "activation")
    assert repair_store(path) == 3
    assert fill(path) == 12
    assert open_store(path).coverage().failed == 0


@pytest.mark.parametrize("what", ["plan", "shard"])
def test_what_a_newer_version_wrote_is_not_taken_for_damage(write, what):
    path = write()
    if what == "plan":
        latest = path / "plan" / "latest"
        whole = (path / "plan" / f"{latest.read_text()}.jsonl").read_bytes()
        newer = whole.replace(b'"condition":{}', b'"condition":{"tool":"x"}', 1)
        latest.write_text(hashlib.sha256(newer).hexdigest())
        (path / "plan" / f"{latest.read_text()}.jsonl").write_bytes(newer)
    else:
        shard = open_store(path).shards[0].path
        whole = shard.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        rows = header["__metadata__"]["rows"].replace('"condition":{}', '"condition":{"tool":"x"}', 1)
        text = canonical_json({**header, "__metadata__": {**header["__metadata__"], "rows": rows}}).encode()
        text += b" " * (-len(text) % 8)
        shard.unlink()
        renamed = shard.with_name(f"{header_name(text)}.safetensors")
        renamed.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    before = samples.content(path)
    for verb in (verify_store, repair_store):
        with pytest.raises(NewerVersion, match=r"has a field 'tool', which a newer version wrote; upgrade"):
            verb(path)
    assert samples.content(path) == before


def test_repair_takes_an_edited_manifest_for_what_is_wrong_and_moves_no_shard(write):
    path = write()
    manifest = path / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"emergency"', '"emergencies"'))
    before = samples.content(path)
    with (
        StoreLock.acquire(path) as lock,
        pytest.raises(StoreError, match=r"manifest\.json is not the one that its 3 sh"),
    ):
        repair(lock)
    assert samples.content(path) == before
    manifest.write_text(whole)
    assert repair_store(path) == 0


def test_a_plan_damaged_in_place_is_written_again_by_the_next_run(write):
    path = write()
    (plan,) = (path / "plan").glob("*.jsonl")
    whole = plan.read_bytes()
    flip(plan, len(whole) // 2)
    (path / "plan" / "latest").write_bytes(b"\xff\xfe")
    assert fill(path) == 0
    assert plan.read_bytes() == whole
    assert open_store(path).verify() == []


def test_a_sealed_store_notices_a_lost_shard_and_takes_no_more_rows_until_it_is_unsealed(write):
    path = write()
    with StoreLock.acquire(path) as lock:
        seal = seal_store(path)
        assert (len(seal.shards), seal.rows, seal.committed, seal.planned) == (3, 12, 12, 12)
        content = (path / "seal.json").read_bytes()
        assert seal_store(path).file == content
        writer = open_writer(path, samples.manifest(), lock=lock)
        assert writer.add_plan(samples.plan()).pending == 0
        with pytest.raises(StoreError, match=r"is sealed.*probe store unseal"):
            writer.add_plan(samples.plan(n_cases=7))
        with pytest.raises(StoreError, match="is sealed"):
            writer.commit([samples.record(row) for row in samples.plan().rows[:1]])
    assert open_store(path).verify() == []
    lost = open_store(path).shards[0].path
    lost.unlink()
    with pytest.raises(MissingShard, match=f"lacks 1 of them .first: {lost.stem}"):
        open_store(path)
    with StoreLock.acquire(path) as lock:
        assert repair(lock).unsealed
    assert fill(path) == 4
    assert lost.exists()
    with StoreLock.acquire(path) as lock:
        assert not unseal(lock)
        seal_store(path)
        assert (path / "seal.json").read_bytes() == content
        assert unseal(lock)
        open_writer(path, samples.manifest(), lock=lock).add_plan(samples.plan(n_cases=7))


def test_an_incomplete_store_is_sealed_only_on_request(tmp_path):
    path, plan = tmp_path / "s", samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit([samples.record(row) for row in plan.rows[:4]])
        with pytest.raises(StoreError, match=r"4 of 12 rows.*--incomplete"):
            seal_store(path)
        assert not (path / "seal.json").exists()
        assert seal_store(path, incomplete=True).committed == 4


def test_a_seal_notices_a_shard_whose_padding_was_changed_which_no_checksum_covers(write):
    path = write()
    shard = open_store(path).shards[0].path
    whole = shard.read_bytes()
    seal_store(path)
    length = int.from_bytes(whole[:8], "little")
    shard.write_bytes((length + 8).to_bytes(8, "little") + whole[8 : 8 + length] + b" " * 8 + whole[8 + length :])
    (problem,) = open_store(path).verify("quick")
    assert "which the seal says" in problem.message


def superseded(path: Path) -> None:
    """Rows of case 3 captured under a later text, and those of the second shard once more in a shard of their own."""
    plan = samples.plan()
    rows = tuple(replace(r, prompt_sha=sha256_of(r.text)[::-1]) if r.cell.case == "case-0003" else r for r in plan.rows)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.start_run({"device": "there"})
        writer.add_plan(replace(plan, rows=rows), "recapture")
        writer.commit([samples.record(row) for row in writer.pending()])
        writer.commit([samples.record(row) for row in rows[4:6]])
        writer.finish_run(0)


@pytest.mark.parametrize("sealed", [False, True])
def test_compact_drops_what_nobody_reads_and_changes_no_bit_of_the_rest(write, sealed):
    path = write()
    superseded(path)
    before = open_store(path)
    assert {problem.kind for problem in before.verify()} == {"duplicate"}
    table = before.table()
    resid = before.select().resid(layer=2, position="answer").numpy()
    if sealed:
        seal_store(path)
    with StoreLock.acquire(path) as lock:
        done = compact(lock)
        assert (done.superseded, done.duplicates) == (2, 2)
        assert compact(lock).shards == 0
    after = open_store(path)
    assert after.verify() == []
    assert (path / "seal.json").exists() == sealed
    assert after.coverage().superseded == 0
    assert sum(len(shard.rows) for shard in after.shards) == 12
    assert after.table().equals(table)
    np.testing.assert_array_equal(after.select().resid(layer=2, position="answer").numpy(), resid)
    assert len(list((path / "quarantine").glob("*.safetensors"))) == done.shards


def test_rewritten_rows_still_tell_which_run_captured_them_and_on_what(tmp_path):
    path, plan = tmp_path / "s", samples.plan()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        run = writer.start_run({"device": "cuda:1", "batch_size": 4})
        writer.commit([samples.record(row) for row in plan.rows], {"batch_size": 3})
        writer.finish_run(0)
    superseded(path)
    with StoreLock.acquire(path) as lock:
        compact(lock)
    store = open_store(path)
    kept = store.provenance(store.select(case="case-0000"))
    assert list(kept["device"]) == ["cuda:1", "cuda:1"]
    assert list(kept["batch_size"]) == [3, 3]
    assert {record.get("origin") for record in store.runs()} >= {None, run}


class Killed(BaseException):
    """The end of a process that cannot clean up."""


@contextmanager
def killed_before(number: int) -> Iterator[None]:
    """From the ``number``-th change of the disk on nothing changes it any more, as after ``kill -9``."""
    seen = 0

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen >= number:
                raise Killed
            return call(*arguments, **options)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "fsync", "replace", "rename", "link", "unlink", "mkdir"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        yield


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("verb", [compact, repair])
def test_care_that_is_killed_at_any_moment_loses_no_row_and_the_next_one_ends_it(write, tmp_path, verb, sealed):
    source = write()
    superseded(source)
    if verb is repair:
        flip(open_store(source).shards[0].path, -5)
    table = None if verb is repair else open_store(source).table()
    if sealed:
        seal_store(source)
    bytes_before = {content for name, content in samples.content(source).items() if name.startswith("shards")}
    plan, kills, number = open_store(source).plan, 0, 0
    while True:
        number += 2 if verb is repair else 9
        path = tmp_path / f"killed-{number}"
        shutil.copytree(source, path)
        try:
            with StoreLock.acquire(path) as lock, killed_before(number):
                verb(lock)
            break
        except Killed:
            kills += 1
        assert bytes_before <= set(samples.content(path).values())  # under shards/ or quarantine/: nothing is deleted
        if table is not None:
            assert open_store(path).table().equals(table)
        with StoreLock.acquire(path) as lock:
            verb(lock)
            if verb is repair:
                unseal(lock)
                writer = open_writer(path, samples.manifest(), lock=lock)
                writer.add_plan(plan)
                writer.commit([samples.record(row) for row in writer.pending()])
        store = open_store(path)
        assert len(store.table()) == 12
        assert {problem.kind for problem in store.verify()} <= ({"duplicate"} if verb is repair else set())
    assert kills >= 3


def test_compact_refuses_a_damaged_store_and_changes_nothing(write):
    path = write()
    superseded(path)
    damage(path, "activation")
    before = samples.content(path)
    with StoreLock.acquire(path) as lock, pytest.raises(StoreError, match="run `probe store repair` first"):
        compact(lock)
    assert samples.content(path) == before


def test_compact_refuses_a_shard_with_tensors_that_it_does_not_know_and_changes_nothing(write):
    path = write()
    superseded(path)
    for shard in open_store(path).shards:
        tensors = {name: shard.whole(name) for name in shard.header.tensors}
        kept = {key: value for key, value in shard.header.metadata.items() if key != "sha256"}
        assert encode(tensors, kept).name == shard.name  # the control: this way of writing adds nothing of its own
        added = np.ones((2, 8), np.float32)
        more = {"attn_pattern.prompt_end.L00": added, "crc.attn_pattern.prompt_end.L00": row_crcs(added)}
        other = encode(tensors | more, kept)
        shard.path.with_name(f"{other.name}.safetensors").write_bytes(b"".join(other.parts))
        shard.path.unlink()
    before = samples.content(path)
    with StoreLock.acquire(path) as lock, pytest.raises(StoreError, match="holds more than this version writes"):
        compact(lock)
    assert samples.content(path) == before


def test_one_of_several_writers_neither_repairs_nor_compacts(write):
    with StoreLock.acquire(write(), Share(0, 2)) as lock:
        for verb in (repair, compact, unseal):
            with pytest.raises(StoreError, match="lone writer"):
                verb(lock)


def test_verify_tells_scripts_what_is_wrong_and_ends_with_its_status(write, capsys):
    path = write()
    assert verify_store(path) == 0
    (path / "tmp" / "left").write_bytes(b"x")
    shard = damage(path, "activation")
    capsys.readouterr()
    assert verify_store(path, "crc", as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    (problem,) = found["problems"]
    assert (problem["shard"], problem["tensor"], problem["rows"]) == (
        shard.name,
        "resid.answer.L01",
        ["nurse/case-0002"],
    )
    assert "1 unfinished files" in found["notes"][0]
    assert repair_store(path) == 3
    assert not list((path / "tmp").iterdir())
    assert verify_store(path, as_json=True) == 3
    assert fill(path) == 4
    assert verify_store(path) == 0


def test_care_of_a_path_without_a_store_makes_none(tmp_path):
    for verb in (verify_store, repair_store):
        with pytest.raises(StoreError, match="has none; check the path"):
            verb(tmp_path / "s")
    assert not list(tmp_path.iterdir())
