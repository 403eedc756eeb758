"""The table of probes: what was planted is found where it was planted; case identity, rarity and noise are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import read_outcomes
from probe.mechanism import in_memory
from probe.mechanism.linear.readouts import out_of_fold
from probe.mechanism.probes.settings import ProbeSettings, folds_of
from probe.mechanism.probes.tables import MEANS, RANDOM, RIDGE, probe_table
from probe.mechanism.probes.targets import Target, targets_of
from probe.mechanism.probes.transfer import OTHERS, transfer_table
from probe.values import ProbeError
from tests.mechanism.probes.probing import alike, case_labels, cells

FEW = ProbeSettings(permutations=39, controls=2)


def study(cases=60, personas=4, seed=0, rate=0.3):
    """A table with labels, and activations of three layers: noise alike within cases, at layer 1 the stated label."""
    rng = np.random.default_rng(seed)
    table = cells(cases, personas)
    latent, stated = case_labels(table, rng, rate, 0.6), case_labels(table, rng, rate, 0.6)
    names = np.array(["A", "B"], dtype=object)
    table = table.assign(target="A", y_latent=names[latent], y_gen=names[stated])
    table.loc[table["case"] < "case-030", "target"] = "B"
    x = np.stack([alike(table, 8, 0.5, rng) for _ in range(3)], axis=1)
    x[:, 1, 0] += 1.5 * stated
    return table, x


def probed(table, x, names=("stated",), settings=FEW):
    read, outcomes = in_memory(table, x, "prompt_end"), read_outcomes(table, options=("A", "B"))
    return probe_table(read, outcomes, targets_of(outcomes, names), settings=settings)


def test_a_planted_label_is_found_at_its_layer_and_shuffling_kills_it():
    table, x = study()
    found = probed(table, x)
    ridge = found[found["method"] == RIDGE].set_index("layer")
    assert ridge.loc[1, "value"] > 0.75 and ridge.loc[1, "p_adjusted"] == 1 / 40
    assert ridge.loc[1, "low"] > 0.65 and ridge.loc[1, "selectivity"] > 0.15
    assert (ridge.loc[[0, 2], "p_adjusted"] > 0.05).all() and (
        ridge.loc[[0, 2], "value"] < ridge["null_high"][[0, 2]]
    ).all()
    assert found.loc[found["method"] == MEANS].set_index("layer").loc[1, "value"] > 0.75
    assert abs(found.loc[found["method"] == RANDOM, "value"].item() - 0.5) < 0.15
    shuffled = x[np.random.default_rng(1).permutation(len(x))]
    ridge = probed(table, shuffled).query("method == 'ridge'")
    assert (ridge["p_adjusted"] > 0.05).all()


def test_a_logistic_probe_stands_beside_the_ridge_where_it_is_asked_for():
    table, x = study(cases=30)
    found = probed(table, x[:, 1:2], settings=ProbeSettings(permutations=3, controls=0, logistic=True))
    by_method = found.set_index("method")["value"]
    assert abs(by_method["logistic"] - by_method[RIDGE]) < 0.05 < by_method["logistic"] - 0.7
    assert "logistic" not in set(probed(table, x[:, 1:2])["method"])


def test_case_identity_that_a_split_by_row_would_exploit_reads_nothing():
    rng = np.random.default_rng(2)
    table = cells(60, 6)
    label = case_labels(table, rng, own=1.0)  # the case decides
    x = alike(table, 64, 0.95, rng)  # and the activations know the case, and nothing of the label
    table = table.assign(target="A", y_gen=np.array(["A", "B"], dtype=object)[label])
    found = probed(table, x[:, None, :]).query("method == 'ridge'")
    assert 0.35 < found["value"].item() < 0.65 and found["p"].item() > 0.05
    by_row = out_of_fold(x, label, rng.integers(0, 5, len(label)))
    assert np.mean(by_row.label == label) > 0.85  # the leak, where folds cut through cases


def test_who_is_speaking_is_tested_within_cases():
    table, x = study()
    x[:, 2, 3] += np.where(table["persona"] == "p2", 2.0, 0.0)
    ridge = probed(table, x, ("persona",)).query("method == 'ridge'").set_index("layer")
    assert ridge.loc[2, "p_adjusted"] == 1 / 40 and ridge.loc[0, "p_adjusted"] > 0.05
    assert ridge.loc[2, "classes"] == 4 and ridge.loc[2, "base_rate"] == 0.25


def test_positions_that_rows_lack_and_labels_that_are_undefined_leave_those_rows_out():
    table, x = study()
    x[table["persona"] == "p3"] = np.nan
    table.loc[table["persona"] == "p0", "y_gen"] = None
    found = probed(table, x)
    assert (found["rows"] == 120).all() and (found["n"] == 60).all()
    assert found.query("method == 'ridge' and layer == 1")["p"].item() == 1 / 40


def test_a_rare_class_is_told_by_its_base_rate_and_a_class_absent_in_folds_by_a_note():
    table, x = study(rate=0.05)
    found = probed(table, x).query("method == 'ridge'")
    assert found["base_rate"].max() == pytest.approx(0.05, abs=0.01)
    lone = table.assign(y_gen=np.where(table["case"] == "case-007", "B", "A"))
    found = probed(lone, x).query("method == 'ridge'")
    assert found["value"].isna().all() and found["p"].isna().all()
    assert found["note"].str.startswith("undefined: no fold").all()


def test_fewer_families_than_folds_are_refused():
    table, x = study(cases=4)
    with pytest.raises(ProbeError, match="5 folds need at least as many case families, found 4"):
        probed(table, x, ("persona",))
    found = probed(table, x, ("persona",), ProbeSettings(folds=4, permutations=5))
    assert len(found)


def test_outcomes_of_another_table_are_refused():
    table, x = study()
    outcomes = read_outcomes(table, options=("A", "B"))
    with pytest.raises(ProbeError, match="found 240 for 236 cells"):
        probe_table(in_memory(table[4:], x[4:], "prompt_end"), outcomes, targets_of(outcomes))


def test_a_baseline_that_knows_the_label_stands_beside_the_probe():
    table, x = study()
    table = table.assign(n_prompt=np.where(table["y_gen"] == "B", 30, 20) + np.arange(len(table)) % 5)
    found = probed(table, x).set_index("method")
    assert found.loc["baseline: length", "value"] > 0.95 > 0.6 > found.loc["baseline: persona", "value"]


def test_a_readout_of_one_persona_carries_over_where_the_direction_is_shared_and_not_where_it_is_turned():
    table, x = study(personas=3)
    label = (table["y_gen"] == "B").to_numpy()
    turned = (table["persona"] == "p2").to_numpy()
    x[:, 1, 0] += 3.0 * label * np.where(turned, -2, 1)
    read = in_memory(table, x, "prompt_end")
    target = Target("stated", label.astype(np.int64), ("A", "B"))
    found = transfer_table(read.at(1, "prompt_end"), table, target, folds_of(table, ProbeSettings()))
    value = found.set_index(["fitted_on", "judged_on"])["value"]
    assert value["p0", "p1"] > 0.9 and value["p2", "p2"] > 0.9
    assert value["p0", "p2"] < 0.1 and value[OTHERS, "p2"] < 0.1 < 0.9 < value["p1", "p0"]


def test_a_wording_that_is_held_out_is_read_where_it_says_the_same_and_not_where_it_turns():
    table, x = study(personas=3)
    table = pd.concat([table.assign(wording=0), table.assign(wording=1)], ignore_index=True)
    rng = np.random.default_rng(8)
    x = np.concatenate([x, x]) + 0.1 * rng.standard_normal((2 * len(x), *x.shape[1:]))
    persona, wording = table["persona"].to_numpy(), table["wording"].to_numpy()
    label = (table["y_gen"] == "B").to_numpy()
    x[:, 1, 0] += 3.0 * label * np.where((persona == "p2") & (wording == 1), -2, 1)
    x[:, 1, 1] += 6.0 * (persona == "p1")  # in either wording
    x[:, 1, 2] += 6.0 * (persona == "p2") * np.where(wording == 1, 1, -1)
    read, fold = in_memory(table, x, "prompt_end"), folds_of(table, ProbeSettings())
    stated = Target("stated", label.astype(np.int64), ("A", "B"))
    value = transfer_table(read.at(1, "prompt_end"), table, stated, fold, by="wording")
    value = value.set_index(["fitted_on", "judged_on"])["value"]
    assert value[OTHERS, "p0/1"] > 0.9 and value["p2/1", "p2/1"] > 0.9 and value[OTHERS, "p2/1"] < 0.1
    who = Target("persona", np.array([int(name[1]) for name in persona]), ("p0", "p1", "p2"))
    kept = transfer_table(read.at(1, "prompt_end"), table, who, fold, by="wording")
    kept = kept.set_index(["fitted_on", "judged_on"])["value"]
    assert kept["1", "1"] > 0.99 and kept[OTHERS, "1"] < 0.9  # p2 is known by its words


@pytest.mark.slow
def test_families_of_near_copies_need_families_to_move():
    rng = np.random.default_rng(5)
    rejected = {False: 0, True: 0}
    runs = 60
    for _ in range(runs):
        table = cells(40, 1)
        own = cells(40, 1)
        table = pd.concat([own.assign(case=own["case"] + f"-{k}") for k in range(4)], ignore_index=True)
        by_family = table.assign(case=table["family"])
        label = case_labels(by_family, rng)
        table = table.assign(target="A", y_gen=np.array(["A", "B"], dtype=object)[label])
        x = alike(by_family, 10, 0.9, rng)[:, None]
        for move in rejected:
            settings = ProbeSettings(permutations=39, controls=0, families_move=move)
            rejected[move] += probed(table, x, settings=settings).query("method == 'ridge'")["p"].item() <= 0.05
    assert rejected[True] / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert rejected[False] > rejected[True] + 3
