"""One small study for every test of the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from probe.behaviour import compare, metrics, reliability
from probe.mechanism import shift_by_layer
from probe.report import study_figures, svg
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


def study(table):
    base = str(table["persona"].iloc[0])
    tables = {"metrics": metrics(table), "comparisons": compare(table, base), "bins": reliability(table)}
    tables["shifts"] = shifts_of(table, list(table["persona"].unique()))
    return SimpleNamespace(**tables, table=table, svgs={name: svg(f) for name, f in study_figures(**tables).items()})


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
