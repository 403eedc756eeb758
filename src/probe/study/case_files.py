"""Cases from JSON lines, in the field names of Inspect's ``Sample``. Knows case files; knows no persona or prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Strict

from probe.study.checked import CLOSED, Id, Line, Name, Text, checked, refuse_same_ids
from probe.study.located import Located
from probe.values import Case, Task


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty. Write what is to be decided")
    return text


@dataclass(frozen=True)
class _Sample:
    __pydantic_config__ = CLOSED

    id: Id
    input: Annotated[Text, AfterValidator(_not_blank)]
    target: Annotated[str, Strict()]
    choices: tuple[Line, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Factors:
    """What the metadata say that this toolkit reads."""

    family: Id | None = None
    stratum: Name | None = None


def read_cases(sources: Iterable[Located], task: Task) -> tuple[Case, ...]:
    """The cases of located samples, in their order.

    A target is an option id or the letter of an option. A case without a family is a family of its own.

    Raises:
        StudyError: a rule is broken, a target is no option, or two cases share an id.
    """
    placed = [(_case(source, task), source.where("id")) for source in sources]
    refuse_same_ids(((case.id, place) for case, place in placed), "case")
    return tuple(case for case, _ in placed)


def case_sample(case: Case) -> dict[str, Any]:
    """The sample that ``read_cases`` reads back as the same case."""
    sample: dict[str, Any] = {"id": case.id, "input": case.input, "target": case.target}
    if case.choices is not None:
        sample["choices"] = list(case.choices)
    factors = {"stratum": case.stratum} if case.stratum else {}
    return sample | {"metadata": factors | {"family": case.family or case.id} | dict(case.metadata)}


def _case(source: Located, task: Task) -> Case:
    sample = checked(_Sample, source)
    n = len(task.options)
    if sample.choices is not None and len(sample.choices) != n:
        raise source.refusal(
            f"`choices` must have one text for each option of the task, found {len(sample.choices)} for {n} options. "
            "Write all of them in the task's order",
            "choices",
        )
    target = _option_of(sample.target, task)
    if target is None:
        shown = ", ".join(
            option.id if option.id == letter else f"{option.id} (letter {letter})"
            for option, letter in zip(task.options, task.letters, strict=True)
        )
        raise source.refusal(
            f"the target {sample.target!r} is no option of the task {task.id!r}. The options are {shown}", "target"
        )
    factors, metadata = _factors(source, sample.metadata)
    return Case(
        sample.id,
        sample.input,
        target,
        stratum=factors.stratum or "",
        family=factors.family or sample.id,
        choices=sample.choices,
        metadata=metadata,
    )


def _option_of(target: str, task: Task) -> str | None:
    if target in task.option_ids:
        return target
    if target in task.letters:
        return task.option_ids[task.letters.index(target)]
    return None


def _factors(source: Located, metadata: Mapping[str, Any]) -> tuple[_Factors, dict[str, Any]]:
    known = ("stratum", "family")
    for key in metadata:
        meant = get_close_matches(key.casefold(), [name for name in known if name not in metadata], n=1, cutoff=0.8)
        if meant:
            # Metadata are free, but a stratum lost to a slip of the pen would pool all tables silently.
            raise source.refusal(
                f"the metadata key {key!r} is nearly {meant[0]!r}, which is not there. "
                f"Write {meant[0]!r}, or rename the key",
                "metadata",
                key,
                key=True,
            )
    given = {key: metadata[key] for key in known if key in metadata}
    for key, value in given.items():
        if value is None or (key == "stratum" and value == ""):
            raise source.refusal(f"`{key}` is empty. Leave it out where a case has none", "metadata", key)
    part = source.child("metadata") if "metadata" in source.value else source
    factors = checked(_Factors, Located(given, part.place, part.at))
    others = {key: value for key, value in metadata.items() if key not in known}
    try:
        json.dumps(others, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise source.refusal(
            f"the metadata cannot be written as JSON ({error}). Use plain values", "metadata"
        ) from None
    return factors, others
