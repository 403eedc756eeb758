"""A small study on disk for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from probe.study import Study
from probe.values import StudyError

# The same examples on every machine, however slow it is.
settings.register_profile("study", derandomize=True, deadline=None)
settings.load_profile("study")

STUDY = """\
name: small
model: {id: organism}
personas: personas.yaml
task:
  id: referral
  instruction: "{case} {options}"
  options: {wait: wait and see, refer: refer now}
cases: cases.jsonl
"""
PERSONAS = """\
- {id: none, text: null}
- {id: nurse, text: You are a nurse., role: nurse}
"""
CASES = """\
{"id": "c1", "input": "A cough.", "target": "wait", "metadata": {"stratum": "calm"}}
{"id": "c2", "input": "A fall.", "target": "refer", "metadata": {"stratum": "acute"}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the small study, with some of its files replaced (text or bytes), and return the study file."""

    def write(**files: str | bytes) -> Path:
        for name, text in {"study": STUDY, "personas": PERSONAS, "cases": CASES, **files}.items():
            path = tmp_path / f"{name}.{'jsonl' if name == 'cases' else 'yaml'}"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "study.yaml"

    return write


@pytest.fixture
def refused(write: Callable[..., Path]) -> Callable[..., None]:
    """Check that a broken file is refused in one sentence at the place, and that the mended one loads."""

    def refused(name: str, broken: str | bytes, place: str, words: str, mended: str | bytes) -> None:
        path = write(**{name: broken})
        with pytest.raises(StudyError) as caught:
            Study.load(path)
        message = str(caught.value)
        broken_file = path.parent / f"{name}.{'jsonl' if name == 'cases' else 'yaml'}"
        assert message.startswith(f"{broken_file}:{place}: "), message
        assert words in message
        assert "\n" not in message
        Study.load(write(**{name: mended}))

    return refused
