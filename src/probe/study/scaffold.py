"""A new study to start from: three commented files that run as they are. Knows templates; runs nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template

from probe import organism
from probe.study.case_files import case_sample
from probe.values import StudyError

CASES_PER_STRATUM = 8

_TEMPLATES = Path(__file__).parent / "templates"


def new_study(directory: str | Path) -> list[Path]:
    """Write ``study.yaml``, ``personas.yaml`` and ``cases.jsonl`` into a directory, which is made if it is not there.

    The cases are generated ones, in the language of the embedded model, with its planted facts in their metadata.

    Raises:
        StudyError: one of the files is there already, or cannot be written; then nothing is written.
    """
    directory = Path(directory)
    files = {directory / name: text for name, text in _texts(directory.resolve().name).items()}
    for path in files:
        if path.exists():
            raise StudyError(f"{path}: this file is there already and is not overwritten. Name another directory")
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x", encoding="utf-8", newline="\n") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise StudyError(
            f"{directory}: the files cannot be written ({error.strerror}). Name another directory"
        ) from None
    return written


def _texts(name: str) -> dict[str, str]:
    study = Template((_TEMPLATES / "study.yaml").read_text(encoding="utf-8"))
    personas = (_TEMPLATES / "personas.yaml").read_text(encoding="utf-8")
    # The name of a study becomes a folder of the cache, so it is made of plain characters.
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "study"
    samples = [case_sample(case) for case in organism.held_out_cases(CASES_PER_STRATUM)]
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    return {"study.yaml": study.substitute(name=plain), "personas.yaml": personas, "cases.jsonl": "".join(lines)}
