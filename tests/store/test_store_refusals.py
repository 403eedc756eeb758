"""What a store refuses, in one sentence and without a byte changed, and what it needs to be read."""

from __future__ import annotations

import json
import tempfile
from itertools import takewhile
from pathlib import Path

import pytest
import store_samples as samples
from store_processes import run_python

from probe.store import StoreLock, open_store, open_writer
from probe.values import (
    Cell,
    ChangedPrompt,
    Condition,
    StoreError,
    StoreMismatch,
)


@pytest.mark.parametrize(
    ("keys", "value", "found"),
    [
        (("model", "weights_sha256"), "77" * 32, r"model.weights_sha256 abababababab.. \(tiny@r1\); this run has 7777"),
        (("capture", "layers"), [0, 1], r"capture.layers \[0,1,2\]; this run has \[0,1\]"),
        (("capture", "dtype"), "bfloat16", "capture.dtype float32; this run has bfloat16"),
        (("chat_template_sha256",), "33" * 32, "chat_template_sha256 222222222222.."),
        (("generation", "max_new_tokens"), 9, "generation.max_new_tokens 8; this run has 9"),
        (("labels", "variants"), ["A"], r'labels.variants nothing; this run has \["A"\]'),
    ],
)
def test_another_identity_is_refused_by_its_first_field_and_changes_no_byte(write, keys, value, found):
    path, other = write(), samples.manifest()
    (path / "tmp" / "left.by.a.dead.writer").write_bytes(b"x")
    before = samples.content(path)
    scope = other
    for key in keys[:-1]:
        scope = scope[key]
    scope[keys[-1]] = value
    with StoreLock.acquire(path) as lock:
        with pytest.raises(StoreMismatch, match=f"captured with {found}.*Use --store NEW_DIR, or the original"):
            open_writer(path, other, lock=lock)
        assert samples.content(path) == before
        open_writer(path, samples.manifest(), lock=lock)


@pytest.mark.parametrize(
    ("key", "value"),
    [("positions", ["../../x"]), ("positions", ["a/b"]), ("positions", "answer"), ("positions", [1]), ("d_model", "8")],
)
def test_positions_and_width_that_could_not_name_a_tensor_are_refused(tmp_path, write, key, value):
    manifest = samples.manifest()
    manifest["capture"][key] = value
    with StoreLock.acquire(tmp_path / "s") as lock, pytest.raises(StoreError, match=f"^capture.{key} is "):
        open_writer(tmp_path / "s", manifest, lock=lock)
    path = write()
    stored = json.loads((path / "manifest.json").read_text())
    stored["capture"][key] = value
    (path / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(StoreError, match=f"^capture.{key} is "):
        open_store(path)


def test_a_moved_model_directory_another_study_name_and_key_order_continue_the_same_store(write):
    path = write()
    same = dict(reversed(samples.manifest().items())) | {"study": "other", "created_by": "later"}
    same["model"] = {**same["model"], "id": "/elsewhere/tiny", "revision": None}
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, same, lock=lock)
        assert writer.add_plan(samples.plan()).pending == 0


def test_an_edited_text_under_the_same_id_is_refused_with_count_and_first_rows_and_nothing_written(write):
    path, edited = write(), samples.plan(edition="edited: ")
    before = samples.content(path)
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        with pytest.raises(
            ChangedPrompt, match=r"12 rows changed since capture \(first: nurse/case-0000, .*case-0004, "
        ):
            writer.add_plan(edited)
        assert samples.content(path) == before
        writer.add_plan(samples.plan(("nurse", "none", "clerk"), 7))
        assert len(writer.pending()) == 9


def test_a_plan_of_fewer_rows_shows_these_and_the_full_plan_shows_all_again(write):
    path = write()
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(samples.plan(n_cases=2))
        assert len(open_store(path).table()) == 4
        writer.add_plan(samples.plan())
    store = open_store(path)
    assert len(store.table()) == 12
    assert len(store.plans()) == 2
    assert store.plans()[-1] == samples.plan()


def test_a_failed_row_is_on_record_and_pending_again_only_when_its_text_changes(tmp_path):
    plan = samples.plan(("nurse",), 4)
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.fail(plan.rows[1].cell, "PromptTooLong", "9120 > 8192", plan.rows[1].prompt_sha)
        assert [row.cell.case for row in writer.pending()] == ["case-0000", "case-0002", "case-0003"]
        store = open_store(tmp_path / "s", warn=False)
        (line,) = store.failures().to_dict("records")
        assert (line["persona"], line["case"], line["kind"]) == ("nurse", "case-0001", "PromptTooLong")
        assert str(store.coverage()) == "0 of 4 rows, 1 failed"
        assert len(store.table()) == 0
        writer.add_plan(samples.plan(("nurse",), 4, edition="shorter: "))
        assert len(writer.pending()) == 4


def test_a_read_only_store_reads_and_refuses_a_writer(write):
    path = write()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    for folder in (path, *(entry for entry in path.iterdir() if entry.is_dir())):
        folder.chmod(0o555)
    (path / ".lock").chmod(0o444)
    code = (
        "import os, sys, pandas\n"
        "from probe.store import *; from probe.values import StoreError\n"
        "os.getuid() or os.setuid(65534)  # root may write everywhere\n"
        "store = open_store(sys.argv[1]); assert store.verify() == []\n"
        "print(len(store.table()), store.select().resid(layer=0, position='answer').numpy().shape)\n"
        "try: StoreLock.acquire(sys.argv[1])\n"
        "except StoreError as error: print(error)\n"
    )
    for parent in takewhile(lambda folder: folder != Path(tempfile.gettempdir()), path.parents):
        parent.chmod(parent.stat().st_mode | 0o055)
    output = run_python(code, path)
    assert output.startswith("12 (12, 8)\n")
    assert "cannot be written" in output
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_reading_needs_no_torch(write):
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'): raise ImportError('blocked ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from probe.store import open_store\n"
        "store = open_store(sys.argv[1]); view = store.select(where='margin > 0')\n"
        "resid = view.resid(layer=1, position='answer')\n"
        "print(resid.numpy().shape, len(list(view.records())), view.texts().shape)\n"
        "print(store.verify(), len(store.table()))\n"
        "try: resid.torch()\n"
        "except ImportError as error: print(error)\n"
    )
    assert run_python(code, write(dtype="bfloat16")) == "(12, 8) 12 (12, 5)\n[] 12\nblocked torch\n"


def test_the_lock_comes_before_anything_heavy_is_imported():
    code = (
        "import sys; from probe.store import StoreLock; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    assert run_python(code) == "set()\n"


def test_hostile_names_open_no_path_outside_the_store(tmp_path):
    code = """
import os, sys
import store_samples as samples, pandas
from probe.store import StoreLock, open_store, open_writer
from probe.values import Cell, Condition
names = ("../../x", "a/b", "CON", "/etc/passwd", "nul\\0", "x" * 300, "\\u202egpj", "%2e%2e", "-rf", "")
plan = samples.plan(names, 2)
def write(path):
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.start_run({"argv": names})
        writer.commit([samples.record(row) for row in plan.rows[:-1]])
        writer.fail(plan.rows[-1].cell, "../kind", "../reason")
        writer.finish_run(0)
    store = open_store(path, warn=False)
    assert sorted(set(store.table().persona)) == sorted(names)
    assert len(store.select(persona=list(names), where="margin > 0").texts()) == len(plan.rows) - 1
    assert store.verify() == [] and len(store.failures()) == 1
write(sys.argv[1] + "/warm")
events, watching = [], True
def watch(event, arguments):
    if watching and event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.listdir", "os.scandir"):
        named = arguments[:1] if event == "open" else arguments[:2]
        events.extend(os.fsdecode(path) for path in named if isinstance(path, (str, bytes, os.PathLike)))
sys.addaudithook(watch)
write(sys.argv[1] + "/s")
seen = len(events)
open("/dev/null").close()
watching = False
print(seen > 20, events[seen:])
store = os.path.realpath(sys.argv[1] + "/s")
outside = {os.path.realpath(path) for path in events[:seen]} - {os.path.dirname(store)}  # its parent is fsynced
print([path for path in outside if not (path + "/").startswith(store + "/")])
"""
    assert run_python(code, tmp_path) == "True ['/dev/null']\n[]\n"


def test_a_directory_that_is_no_store_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"holds 'thesis.tex'; name another --store"):
        StoreLock.acquire(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="manifest"):
        open_store(tmp_path)


def test_a_newer_schema_is_refused_with_the_remedy(write):
    path = write()
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("persona-acts/1", "persona-acts/3"))
    with pytest.raises(
        StoreError, match=r"schema persona-acts/3 .* is newer than this tool \(persona-acts/1\); upgrade"
    ):
        open_store(path)


@pytest.mark.parametrize(
    ("row", "found"),
    [(Cell("nurse", "case-0000", Condition()), "twice"), (Cell("clerk", "case-0000", Condition()), "clerk")],
)
def test_a_plan_with_a_doubled_or_unlisted_cell_is_refused(tmp_path, row, found):
    good = samples.plan()
    bad = type(good)(**{**vars(good), "rows": (*good.rows, type(good.rows[0])(**{**vars(good.rows[0]), "cell": row}))})
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        with pytest.raises(StoreError, match=found):
            writer.add_plan(bad)
        assert not list((tmp_path / "s" / "plan").iterdir())
