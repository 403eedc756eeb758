"""Selections and the table of cells: the columns mean what they say, and unknown names are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import store_samples as samples

from probe.store import StoreLock, UnknownName, open_store, open_writer
from probe.values import ProbeError


def test_the_table_says_of_each_cell_what_its_record_holds_in_plan_order(write):
    store = open_store(write(absent="case-0002"))
    table, plan = store.table(), store.plan
    assert table.row_id.tolist() == [row.cell.row_id for row in plan.rows]
    assert table.attrs == {"options": list(samples.OPTIONS), "high_risk": "emergency", "study": "sample"}
    for (_, line), row in zip(table.iterrows(), plan.rows, strict=True):
        record = samples.record(row, answer=row.cell.case != "case-0002")
        logp = record.labels["prompt_end"].logp.astype(float)
        assert (line.persona, line.case, line.placement) == (row.cell.persona, row.cell.case, "system")
        assert line.y_latent == samples.OPTIONS[int(np.argmax(logp))]
        assert (line.y_gen, line.letter, line.status) == (record.label, record.letter, record.status)
        assert line.letter_first == record.letter_first
        assert [line[f"logp_{option}"] for option in samples.OPTIONS] == logp.tolist()
        assert line.margin == pytest.approx(np.sort(logp)[-1] - np.sort(logp)[-2], abs=1e-12)
        assert line.entropy == record.labels["prompt_end"].entropy
        assert line.label_mass == record.labels["prompt_end"].mass
        assert (line.n_prompt, line.n_gen) == (len(record.prompt_tokens), len(record.gen_tokens))
        if "answer" in record.labels:
            assert line.stated_logp_clinic == record.labels["answer"].logp[1]
            assert line.stated_label_mass == record.labels["answer"].mass
        else:
            assert math.isnan(line.stated_logp_clinic)
            assert math.isnan(line.stated_label_mass)
    assert table[table.case == "case-0002"].y_gen.tolist() == [None, None]


def test_the_planned_distributions_stand_beside_what_was_read_and_only_where_there_is_a_plan(write):
    table = open_store(write()).table().set_index("persona")
    nurse = table.loc["nurse"].iloc[0]
    assert nurse.planned_logp_emergency == pytest.approx(math.log(0.5))
    assert nurse.planned_stated_logp_home == -math.inf
    assert np.isnan(table.loc["none"].planned_logp_emergency).all()


def test_rows_committed_out_of_order_are_read_in_plan_order(tmp_path):
    plan = samples.plan()
    with StoreLock.acquire(tmp_path / "s") as lock:
        writer = open_writer(tmp_path / "s", samples.manifest(), lock=lock)
        writer.add_plan(plan)
        for k in (7, 2, 11, 5):
            writer.commit([samples.record(plan.rows[k])])
    view = open_store(tmp_path / "s", warn=False).select()
    expected = [samples.record(plan.rows[k]).resid["answer"][0] for k in (2, 5, 7, 11)]
    assert view.table().row_id.tolist() == [plan.rows[k].cell.row_id for k in (2, 5, 7, 11)]
    np.testing.assert_array_equal(view.resid(layer=0, position="answer").numpy(), expected)


def test_selections_by_every_name_keep_exactly_the_rows_that_match(write):
    store = open_store(write())
    table = store.table()
    for key, value in (("persona", "nurse"), ("stratum", "emergency"), ("role", "nurse"), ("family", "family-1")):
        found = store.select(**{key: value}).table()
        assert found.row_id.tolist() == table[table[key] == value].row_id.tolist()
        assert 0 < len(found) < len(table)
    found = store.select(stratum="emergency", where="margin > 0.5 and y_latent != target").table()
    kept = table[(table.stratum == "emergency") & (table.margin > 0.5) & (table.y_latent != table.target)]
    assert found.row_id.tolist() == kept.row_id.tolist()
    np.testing.assert_array_equal(store.select().label_logp()[:, 1], table.logp_clinic.to_numpy(np.float32))


def test_an_unknown_name_is_refused_with_the_nearest_one_and_never_gives_an_empty_array(write):
    store = open_store(write())
    with pytest.raises(UnknownName, match="no persona 'nurze'; nearest: 'nurse'") as caught:
        store.select(persona=["nurse", "nurze"])
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ProbeError)
    view = store.select()
    for call in (
        lambda: store.select(stratum="emergencies"),
        lambda: store.select(case="case-9999"),
        lambda: view.resid(layer=3, position="answer"),
        lambda: view.resid(layer=-1, position="answer"),
        lambda: view.resid(layer=1, position="prompt-end"),
        lambda: view.label_logp("persona_end"),
    ):
        with pytest.raises(UnknownName):
            call()


@pytest.mark.parametrize(
    "where", ["margin >", "no_such_column > 1", "margin + 1", "persona > 3", "x = margin", "@os.name == ''"]
)
def test_a_bad_where_is_refused_in_one_sentence(write, where):
    with pytest.raises(ProbeError, match="where="):
        open_store(write()).select(where=where)


def test_texts_stand_beside_their_rows(write):
    view = open_store(write()).select(persona="none")
    texts, planned = view.texts(), {row.cell.row_id: row for row in samples.plan().rows}
    assert texts.row_id.tolist() == view.table().row_id.tolist()
    for _, line in texts.iterrows():
        assert line.gen_text == samples.record(planned[line.row_id]).gen_text
        assert line.prompt == planned[line.row_id].text
    assert texts.gen_text.str.contains("🩺").any()


def test_changing_a_table_does_not_change_the_next_one(write):
    store = open_store(write())
    table = store.table()
    table.loc[:, "margin"] = 0.0
    table.attrs["options"].clear()
    assert (store.table().margin > 0).all()
    assert store.table().attrs["options"] == list(samples.OPTIONS)
