"""No cell of a CSV file is run by a spreadsheet, and nothing else is changed."""

import pytest

from probe.values.spreadsheets import inert


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2", "@SUM(A1)", "\tx", "\rx"])
def test_text_that_would_be_run_begins_with_an_apostrophe(text: str) -> None:
    assert inert(text).startswith("'")
    assert "\r" not in inert(text)


@pytest.mark.parametrize("value", ["plain", "a=b", "", -1.5, None, True])
def test_other_text_and_numbers_stay_as_they_are(value: object) -> None:
    assert inert(value) is value
