"""What a plan says of the interventions of a study."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from probe.stages.recipes import interventions_told
from probe.values import Case, Intervention, Recipe


def test_a_case_without_a_family_is_its_own_where_its_directions_were_fitted_and_the_others_are_not_counted() -> None:
    edit = Intervention(1, "add", np.ones(2, dtype=np.float32))
    arm = Recipe("push", (edit,), fitted_on=frozenset({"one", "twins"}))
    cases = (Case("one", "x", "A"), Case("two", "y", "A"), replace(Case("three", "z", "A"), family="twins"))
    study = cast("Any", SimpleNamespace(interventions=(arm,), cases=cases))
    assert [told["cases_fitted_on"] for told in interventions_told(study)] == [2]
