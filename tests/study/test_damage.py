"""Any damage to the files of a study is refused in one sentence, or harmless; it never ends in another exception."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.study import Study, new_study
from probe.values import StudyError

SCRAPS = ["-", ":", "{", "}", "[", "]", '"', "'", "#", "|", "?", "&", "*", "\\", ",", "é"]
WORDS = [
    "!!int ",
    "!x ",
    "null",
    "true",
    "1e400",
    "-1",
    "id",
    "text: x",
    "&a ",
    "*a",
    "\\u0000",
    "- ",
    ": ",
    "\n",
    "\t",
    "",
]
PIECES = st.sampled_from([text.encode() for text in SCRAPS + WORDS] + [b"\xff", b"\x00"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["study.yaml", "personas.yaml", "cases.jsonl"]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES), min_size=1, max_size=3),
)
def test_a_damaged_study_is_refused_in_one_sentence_or_loads(
    tmp_path: Path, name: str, edits: list[tuple[float, int, bytes]]
) -> None:
    if not (tmp_path / "study.yaml").exists():
        new_study(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    spoiled = whole
    for where, length, scrap in edits:
        at = int(where * len(spoiled))
        spoiled = spoiled[:at] + scrap + spoiled[at + length :]
    path.write_bytes(spoiled)
    try:
        Study.load(tmp_path / "study.yaml")
    except StudyError as error:
        assert str(error).startswith(str(tmp_path))
        assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)
    assert len(Study.load(tmp_path / "study.yaml").cases) == 16
