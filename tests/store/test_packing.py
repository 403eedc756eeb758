"""A record as tensors and back: every label read, dense or ragged, finite or not, and nothing that does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import store_samples as samples

from probe.store import Plan, StoreLock, open_store, open_writer
from probe.store.manifests import layout_of
from probe.store.packing import finite_rows, pack
from probe.store.plans import cell_of, parse_plan
from probe.store.shard_format import header_name
from probe.values import CellRecord, LabelRead, ProbeError, StoreError

LAYOUT = layout_of(samples.manifest())


def commit(path, plan: Plan, records: list[CellRecord]) -> list[CellRecord]:
    with StoreLock.acquire(path) as lock:
        writer = open_writer(path, samples.manifest(), lock=lock)
        writer.add_plan(plan)
        writer.commit(records)
    found = {record.cell: record for record in open_store(path, warn=False).select().records()}
    return [found[record.cell] for record in records]


def with_variants(record: CellRecord, variants: tuple[tuple[int, ...], ...]) -> CellRecord:
    logp = tuple(tuple(-float(k + 1) / 4 for k in range(len(ids))) for ids in variants)
    reads = {site: replace(read, variant_ids=variants, variant_logp=logp) for site, read in record.labels.items()}
    return replace(record, labels=reads)


def test_variants_come_back_as_they_were_though_rows_have_different_numbers_of_them(tmp_path):
    plan = samples.plan(("nurse",), 4)
    kinds = [((1, 2), (3,), (4, 5, 6)), ((7,), (8,), (9,)), (), ((0,), (), (2, 3))]
    records = [with_variants(samples.record(row), kind) for row, kind in zip(plan.rows, kinds, strict=True)]
    records[0] = replace(records[0], labels={"prompt_end": records[0].labels["prompt_end"]})
    for found, saved in zip(commit(tmp_path / "s", plan, records), records, strict=True):
        assert found.labels.keys() == saved.labels.keys()
        for site, read in saved.labels.items():
            assert found.labels[site].variant_ids == read.variant_ids
            assert found.labels[site].variant_logp == read.variant_logp
            assert found.labels[site].top_ids == read.top_ids


def test_a_shard_without_variants_has_no_tensor_of_them():
    records = [samples.record(row) for row in samples.plan().rows]
    assert b"variant" not in bytes(pack(records, LAYOUT).parts[1])
    assert b"label_variant_logp" in bytes(pack([with_variants(records[0], ((1,), (2,), (3,)))], LAYOUT).parts[1])


def test_rows_that_are_not_finite_come_back_to_the_bit_where_they_are_marked(tmp_path):
    plan = samples.plan(("nurse",), 3)
    records = [samples.record(row) for row in plan.rows]
    resid = {site: value.copy() for site, value in records[1].resid.items()}
    resid["prompt_end"][2, 3], resid["answer"][0, 0] = np.nan, np.inf
    nothing = LabelRead(np.full(3, np.nan, np.float32), float("nan"), float("nan"), (7, 8), (float("nan"),) * 2)
    broken = replace(records[1], resid=resid, labels={"prompt_end": nothing})
    with pytest.raises(ProbeError, match=r"case-0001.*'prompt_end' is not finite at layer 2"):
        commit(tmp_path / "refused", plan, [records[0], replace(records[1], resid=resid)])
    with pytest.raises(ProbeError, match=r"case-0001.*labels at 'prompt_end' are not finite"):
        commit(tmp_path / "refused", plan, [records[0], replace(records[1], labels=broken.labels)])
    found = commit(tmp_path / "s", plan, [records[0], replace(broken, nonfinite=7), records[2]])
    assert [record.nonfinite for record in found] == [0, 7, 0]
    assert found[1].resid["prompt_end"].tobytes() == resid["prompt_end"].tobytes()
    assert found[1].labels.keys() == {"prompt_end"}
    assert np.isnan(found[1].labels["prompt_end"].logp).all()
    assert found[0].resid["prompt_end"].tobytes() == records[0].resid["prompt_end"].tobytes()


def test_finiteness_of_bfloat16_is_read_from_its_bits_as_numpy_reads_it():
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)[:, None]
    np.testing.assert_array_equal(finite_rows(every), np.isfinite(every.astype(np.float32))[:, 0])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"status": "fine"}, "status is one of"),
        ({"label": "hospital"}, "its label is one of home, clinic, emergency; found 'hospital'"),
        (
            {"resid": {"answer": np.zeros((2, 8), np.float32)}},
            r"has the shape \[3, 8\] of the manifest; found \[2, 8\]",
        ),
        ({"resid": {"answer": np.zeros((3, 8), np.float64)}}, "stored as float32, never converted silently"),
        ({"resid": {"answer": np.zeros((3, 8), np.float16)}}, "stored as float32, never converted silently"),
        ({"positions": {"prompt_end": 4, "answer": -1}}, "an absent site has no key"),
        ({"labels": {"answer": LabelRead(np.zeros(2, np.float32), 1.0, 0.0)}}, "need 3 log-probabilities"),
        (
            {"labels": {"answer": LabelRead(np.zeros(3, np.float32), 1.0, 0.0, (), (), ((1,), (2,), (3,)))}},
            "one log-probability for each variant",
        ),
        (
            {"labels": {"answer": LabelRead(np.zeros(3, np.float32), 1.0, 0.0, (), (), ((1,),), ((0.0,),))}},
            "for each variant of each label",
        ),
        ({"extra": {"x": {1}}}, "not plain JSON"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_its_row(change, found):
    row = samples.plan().rows[0]
    pack([samples.record(row)], LAYOUT)
    with pytest.raises(ProbeError, match=rf"^row nurse/case-0000.*{found}"):
        pack([replace(samples.record(row), **change)], LAYOUT)


def test_the_name_is_the_hash_of_the_header_and_changes_with_any_value():
    records = [samples.record(row) for row in samples.plan().rows[:2]]
    shard = pack(records, LAYOUT)
    assert shard.name == header_name(bytes(shard.parts[1])) == pack(records, LAYOUT).name
    other = records[1].resid["answer"].copy()
    other[2, 7] = np.nextafter(other[2, 7], np.float32(np.inf))
    changed = replace(records[1], resid={**records[1].resid, "answer": other})
    assert pack([records[0], changed], LAYOUT).name != shard.name


def test_a_condition_of_a_newer_version_is_refused_with_the_remedy():
    entry = {"persona": "nurse", "case": "case-0000", "condition": {"seed": 1}}
    assert cell_of(entry).condition.seed == 1
    with pytest.raises(StoreError, match=r"nurse/case-0000 has a field 'shade', which a newer version wrote; upgrade"):
        cell_of({**entry, "condition": {"shade": "x"}})


def test_a_plan_comes_back_as_it_was_and_says_only_what_differs_from_the_default():
    plan = samples.plan(placement="user")
    assert parse_plan(plan.hash, plan.file) == plan
    lines = [json.loads(line) for line in plan.file.splitlines()]
    assert lines[1]["condition"] == {"placement": "user"}
    assert json.loads(samples.plan().file.splitlines()[1])["condition"] == {}
