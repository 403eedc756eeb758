"""What a table must be, and what is read from it."""

import numpy as np
import pandas as pd
import pytest

from probe.behaviour import planned_outcomes, read_outcomes
from probe.values import ProbeError
from tests.behaviour.synthetic import synthetic_table


def small(**columns):
    return pd.DataFrame({"case": ["1", "2"], "persona": ["none", "none"], "target": ["lo", "hi"], **columns})


def test_a_sound_table_is_read_and_its_options_keep_their_rising_order():
    table = small(y_gen=["lo", None], status=["parsed", "refused"], logp_lo=[-0.1, -2.0], logp_hi=[-2.4, -0.2])
    outcomes = read_outcomes(table)
    assert outcomes.options == ("lo", "hi")
    assert outcomes.high == 1
    assert outcomes.stated.tolist() == [0, -1]
    assert outcomes.latent.tolist() == [0, 1]
    assert np.exp(outcomes.latent_logp).sum(1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda t: t.drop(columns="target"), "missing: target"),
        (lambda t: t.iloc[:0], "at least one row"),
        (lambda t: pd.concat([t, t.iloc[[3]]]), "may stand once"),
        (lambda t: t.assign(target="D"), "must be one of the options"),
        (
            lambda t: t.assign(y_gen="b"),
            r"^y_gen must be .* found 'b' in row 0 \(.*\)\. The nearest known option is 'B'",
        ),
        (lambda t: t.assign(logp_A="high"), r"^logp_A must hold numbers, found 'high' in row 0"),
        (lambda t: t.assign(label_mass=["n/k"] * len(t)), r"^label_mass must hold numbers, found 'n/k' in row 0"),
        (lambda t: t[["case", "persona", "stratum", "target"]], "needs an outcome: y_gen, y_latent or one logp_"),
        (lambda t: t.assign(target=None), "needs a target"),
        (lambda t: t.assign(status="odd"), "status must be one of"),
        (lambda t: t.assign(status="refused"), "exactly where status is parsed"),
        (lambda t: t.assign(stratum="all"), "no stratum may be called"),
        (lambda t: t.drop(columns="logp_B"), "logp_B"),
        (lambda t: t.assign(logp_A=np.inf), "must be log-probabilities"),
        (
            lambda t: t.assign(y_latent="A", logp_A=-2.0, logp_B=-1.0, logp_C=-1.5),
            r"^y_latent is the most probable label; row 0 .* has A, and logp_<label> is highest for B; leave y_latent",
        ),
        (
            lambda t: t.assign(case=t["case"].where(t["persona"] != "none", t["case"].iloc[::-1].to_numpy())),
            "a case has",
        ),
    ],
)
def test_a_broken_table_is_refused_in_one_sentence_and_the_whole_one_is_not(break_it, said):
    table = synthetic_table(4, unparsed=0)
    read_outcomes(table)
    broken = break_it(table)
    broken.attrs = table.attrs
    with pytest.raises(ProbeError, match=said) as refused:
        read_outcomes(broken)
    assert "\n" not in str(refused.value)


def test_a_latent_label_that_trails_by_the_rounding_of_its_table_is_taken():
    near = small(y_latent=["lo", "hi"], logp_lo=[-0.70, -0.69], logp_hi=[-0.69, -0.70])
    assert read_outcomes(near.assign(logp_hi=[-0.695, -0.695])).latent.tolist() == [0, 1]
    with pytest.raises(ProbeError, match="y_latent is the most probable label"):
        read_outcomes(near.assign(logp_lo=[-0.8, -0.69]))


def test_an_unknown_high_risk_label_is_refused():
    with pytest.raises(ProbeError, match="high-risk label must be an option"):
        read_outcomes(small(y_gen=["lo", "hi"]), high_risk="C")


def test_options_come_from_argument_then_attributes_then_columns_then_labels():
    table = small(y_gen=["lo", "hi"])
    by_target = read_outcomes(table)
    assert (set(by_target.options), by_target.ranked, by_target.high) == ({"hi", "lo"}, False, None)
    table["logp_lo"], table["logp_hi"] = -1.0, -1.0
    by_column = read_outcomes(table)
    assert (by_column.options, by_column.ranked, by_column.high) == (("lo", "hi"), True, 1)
    table.attrs["options"] = ["hi", "lo"]
    assert read_outcomes(table).options == ("hi", "lo")
    assert read_outcomes(table, options=["lo", "hi"], high_risk="lo").high == 0


def test_the_first_label_wins_a_tie_and_a_row_without_logits_has_none():
    outcomes = read_outcomes(small(logp_lo=[-0.7, np.nan], logp_hi=[-0.7, np.nan]))
    assert outcomes.latent.tolist() == [0, -1]


def test_the_plan_is_read_on_the_same_rows_and_uncovered_rows_are_absent():
    table = synthetic_table(5)
    outcomes = read_outcomes(table)
    table.loc[0, [f"planned_logp_{o}" for o in "ABC"]] = np.nan
    plan = planned_outcomes(table, outcomes)
    assert plan.status[0] == "absent"
    assert (plan.status[1:] == "parsed").all()
    assert (plan.reference == outcomes.reference).all()
    bare = table.drop(columns=[c for c in table if c.startswith("planned")])
    assert planned_outcomes(bare, outcomes) is None


def test_a_row_that_is_planned_to_state_nothing_is_refused_in_the_plan_and_its_latent_label_stays():
    table = synthetic_table(5)
    outcomes = read_outcomes(table)
    whole = planned_outcomes(table, outcomes)
    table.loc[0, [f"planned_stated_logp_{o}" for o in "ABC"]] = np.nan
    plan = planned_outcomes(table, outcomes)
    assert (plan.status[0], plan.stated[0], plan.latent[0]) == ("refused", -1, whole.latent[0])
    assert (plan.status[1:] == "parsed").all()


def test_a_label_that_only_an_answer_states_is_refused_not_made_an_option():
    with pytest.raises(ProbeError, match=r"y_gen must be .* found 'High' in row 1 .*nearest known option is 'hi'"):
        read_outcomes(small(y_gen=["lo", "High"]))
    assert read_outcomes(small(y_gen=["lo", "High"]), options=["lo", "hi", "High"]).stated.tolist() == [0, 2]


def test_labels_are_the_same_whether_a_file_made_them_numbers_or_text():
    table = pd.DataFrame({"case": [1, 2, 3], "persona": "none", "target": ["1", "2", "1"]})
    mixed = table.assign(y_gen=[1.0, np.nan, 2.0], y_latent=pd.array([1, 2, None], dtype="Int64"))
    outcomes = read_outcomes(mixed)
    assert outcomes.options == ("1", "2")
    assert outcomes.stated.tolist() == [0, -1, 1]
    assert outcomes.latent.tolist() == [0, 1, -1]
    assert outcomes.status.tolist() == ["parsed", "unparsable", "parsed"]
