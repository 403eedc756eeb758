"""Do the parts of a study fit together? Knows settings, personas, task and cases; knows no file."""

from __future__ import annotations

from collections.abc import Mapping

from probe.study.label_spec import LabelSpec
from probe.study.located import Located
from probe.study.spec import DEFAULT, ConditionSpec, GenerationSpec, StudyFile
from probe.values import ALL, Case, Persona, StudyError, Task
from probe.values.nearest import nearest


def refuse_misfits(
    settings: StudyFile, personas: tuple[Persona, ...], task: Task, cases: tuple[Case, ...], source: Located
) -> None:
    """Raise where two parts of a study contradict each other; ``source`` names the places.

    Raises:
        StudyError: the base is no persona, an instruction, rotation or wording does not exist, a planned contrast names
            what is not there, greedy decoding is given seeds, a position is of a site that is not read, a target is no
            option, or there are no cases.
    """
    ids = [persona.id for persona in personas]
    if settings.base not in ids:
        raise source.refusal(
            f"the base persona {settings.base!r}, which all others are compared with, is not among the personas. "
            f"{nearest(settings.base, ids, 'persona')}; set `base` to one of them, or add `{{id: none, text: null}}`",
            "base" if settings.base != "none" else "personas",  # the default is seldom written
        )
    _refuse_missing_conditions(settings, task, source)
    _refuse_missing_wordings(settings.conditions, personas, source)
    _refuse_idle_sampling(settings.generation, source)
    _refuse_unread_sites(settings, source)
    if not cases:
        raise source.refusal("there must be at least one case. Add one", "cases")
    for case in cases:
        if case.stratum == ALL:
            raise source.refusal(
                f"the stratum of case {case.id!r} is {ALL!r}, the name of the pool of all strata. Name it otherwise",
                "cases",
            )
        if case.target not in task.option_ids:
            raise source.refusal(
                f"the target {case.target!r} of case {case.id!r} is no option of the task {task.id!r}. "
                f"The options are {', '.join(task.option_ids)}",
                "cases",
            )
    # A limit may leave a stratum without cases; that is no slip of the pen.
    strata = tuple(dict.fromkeys(case.stratum for case in cases)) if settings.limit is None else None
    _refuse_missing_contrasts(settings, ids, strata, source)


def _refuse_missing_conditions(settings: StudyFile, task: Task, source: Located) -> None:
    conditions = settings.conditions
    for name, chosen, n, what in (
        ("instructions", conditions.instructions, len(task.instructions), "instruction wordings"),
        ("rotations", conditions.rotations, len(task.options), "options"),
    ):
        if isinstance(chosen, str):
            continue
        for i, index in enumerate(chosen):
            if index >= n:
                raise source.refusal(
                    f"`{name}` holds {index}, but the task {task.id!r} has {n} {what}. Count from 0 to {n - 1}",
                    "conditions",
                    name,
                    i,
                )


def _refuse_missing_wordings(conditions: ConditionSpec, personas: tuple[Persona, ...], source: Located) -> None:
    if not isinstance(conditions.wordings, Mapping):
        return
    there = {persona.id: len(persona.wordings) for persona in personas}
    for name, chosen in conditions.wordings.items():
        at = ("conditions", "wordings", name)
        if name not in there and name != DEFAULT:
            raise source.refusal(
                f"`wordings` names {name!r}, which is no persona of this study. "
                f"{nearest(name, [*there, DEFAULT], 'persona')}",
                *at,
                key=True,
            )
        if isinstance(chosen, int) and name in there and chosen > there[name]:
            raise source.refusal(
                f"`wordings` asks for {chosen} wordings of {name!r}, which has {there[name]}. Write all, or fewer", *at
            )


def _refuse_idle_sampling(generation: GenerationSpec, source: Located) -> None:
    """Settings that greedy decoding would ignore are refused: they would stand in the record and mean nothing."""
    neutral = GenerationSpec()
    for name in ("seeds", "top_p", "top_k"):
        found = getattr(generation, name)
        if generation.greedy and found != getattr(neutral, name):
            raise source.refusal(
                f"`{name}` is {found}, but at temperature 0 the answer is greedy and always the same. "
                f"Set `generation.temperature` above 0, or leave `{name}` out",
                "generation",
                name,
            )


def _refuse_unread_sites(settings: StudyFile, source: Located) -> None:
    """Positions of forced texts without the site that feeds them, and a forced text that no site feeds."""
    for i, position in enumerate(settings.capture.positions):
        if position in ("forced", "after_reasoning") and position not in settings.labels.sites:
            raise source.refusal(
                f"`positions` names {position!r}, where only that answer site feeds a text. Add it to `labels.sites`",
                "capture",
                "positions",
                i,
            )
    if settings.labels.forced != LabelSpec().forced and not settings.labels.forces:
        raise source.refusal(
            "`forced` is fed at the answer sites forced and after_reasoning, and `labels.sites` names neither. "
            "Add one, or leave `forced` out",
            "labels",
            "forced",
        )


def _refuse_missing_contrasts(
    settings: StudyFile, personas: list[str], strata: tuple[str, ...] | None, source: Located
) -> None:
    for i, contrast in enumerate(settings.confirm):
        at = ("confirm", i)
        base = contrast.base if contrast.base is not None else settings.base
        for key, name in (("persona", contrast.persona), ("base", base)):
            if name not in personas:
                raise source.refusal(
                    f"`confirm` names the {key} {name!r}, which is no persona of this study. "
                    f"{nearest(name, personas, 'persona')}",
                    *at,
                    key,
                )
        if contrast.persona == base:
            raise source.refusal(
                f"`confirm` compares {base!r} with itself. Name another persona, or another base", *at, "persona"
            )
        if strata is not None and contrast.stratum not in (ALL, *strata):
            raise source.refusal(
                f"`confirm` names the stratum {contrast.stratum!r}, which no case has. "
                f"{nearest(contrast.stratum, [ALL, *strata], 'stratum')}",
                *at,
                "stratum",
            )


def evenly(cases: tuple[Case, ...], limit: int | None) -> tuple[Case, ...]:
    """``limit`` cases in all, spread evenly over the strata: the first of each stratum, in file order.

    A stratum that has too few leaves its share to the others; strata that come first in the file get what is over.
    """
    if limit is None or limit >= len(cases):
        return cases
    by_stratum: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        by_stratum.setdefault(case.stratum, []).append(index)
    # The k-th case of every stratum comes before the (k+1)-th of any; sorting is stable, so strata keep their order.
    turns = [(turn, index) for indices in by_stratum.values() for turn, index in enumerate(indices)]
    kept = sorted(index for _, index in sorted(turns, key=lambda pair: pair[0])[:limit])
    return tuple(cases[index] for index in kept)


def unknown_id(items: dict[str, Persona] | dict[str, Case], name: str, what: str) -> StudyError:
    """The error for an id that a study does not hold."""
    return StudyError(f"this study has no {what} {name!r}. {nearest(name, items, what)}")
