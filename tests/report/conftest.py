"""Small studies for every test of the report: a plain one, one with hostile names, one with control wordings."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from probe import behaviour
from probe.mechanism import shift_by_layer
from probe.report import Picture, Tables, study_figures, svg
from tests.behaviour.synthetic import PERSONAS, synthetic_table


def shifts_of(table, personas, d=24):
    """Planted residual shifts for these personas; the first one is the base and helpful_assistant does not shift."""
    rng = np.random.default_rng(0)
    cells = table.drop_duplicates("case")
    base = rng.normal(size=(3, len(cells), d))
    direction = {persona: rng.normal(0, 0.1, d) for persona in personas}

    def read(persona, layer, position):
        moved = persona not in (personas[0], "helpful_assistant")
        return cells, base[layer] + layer * moved * direction[persona] + rng.normal(0, 0.05, base[layer].shape)

    return shift_by_layer(read, personas, range(3), base=personas[0])


def tables_of(table, **more):
    base = str(table["persona"].iloc[0])
    return Tables(
        metrics=behaviour.metrics(table),
        comparisons=behaviour.compare(table, base, **more),
        reliability=behaviour.reliability(table),
        shifts=shifts_of(table, list(table["persona"].unique())),
        sites=behaviour.consistency_by_site(table),
        causes=behaviour.causes(table),
        omnibus=behaviour.cochran(table),
    )


def study(table, **more):
    tables = tables_of(table, **more)
    drawn = study_figures(tables)
    pictures = [Picture(name, figure.title, figure.caption, svg(figure.figure)) for name, figure in drawn.items()]
    return SimpleNamespace(table=table, tables=tables, drawn=drawn, pictures=pictures)


@pytest.fixture(scope="session")
def small_study():
    return study(synthetic_table(120))


@pytest.fixture(scope="session")
def hostile_study():
    """Persona, case and stratum names that try to leave their place, and one persona that never answers."""
    names = [
        "none",
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "nurse \u202egnp.exe",
        "$x_{2}$ 100%",
    ]
    table = synthetic_table(12, personas=dict(zip(names, PERSONAS.values(), strict=False)))
    table["case"] = table["case"] + "<b>"
    table["stratum"] = table["stratum"].where(table["stratum"] == "emergency", "<i>primary</i>")
    silent = table["persona"] == names[4]
    table["y_gen"] = table["y_gen"].where(~silent, None)
    table.loc[silent, "status"] = "unparsable"
    table.loc[silent, "label_mass"] = 0.1
    return study(table)


@pytest.fixture(scope="session")
def floor():
    """A noise floor as ``behaviour.noise_floor`` gives it: one effect far beyond the controls, one like a control."""
    rows = [
        ("accuracy", "ed_physician", "emergency", 0.2, 0.001),
        ("accuracy", "ed_nurse", "emergency", 0.02, 0.6),
    ]
    table = pd.DataFrame(rows, columns=["metric", "persona", "stratum", "effect", "p_holm"])
    same = {"floor_half": 0.04, "floor_low": -0.06, "floor_high": 0.05, "k": 30, "m": 5, "df": 29, "t": 1.0}
    same |= {"p_rank": 1 / 31, "p_rank_min": 1 / 31, "theta": 0.8, "controls_mean": 0.7, "note": ""}
    return table.assign(**same, p=table["p_holm"], low=table["effect"] - 0.03, high=table["effect"] + 0.03)
