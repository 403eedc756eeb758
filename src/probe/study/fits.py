"""Do the parts of a study fit together? Knows settings, personas, task and cases; knows no file."""

from __future__ import annotations

from probe.study.located import Located, nearest
from probe.study.spec import StudyFile
from probe.values import ALL, Case, Persona, StudyError, Task


def refuse_misfits(
    settings: StudyFile, personas: tuple[Persona, ...], task: Task, cases: tuple[Case, ...], source: Located
) -> None:
    """Raise where two parts of a study contradict each other; ``source`` names the places.

    Raises:
        StudyError: the base is no persona, an instruction or rotation does not exist, a target is no option, or there
            are no cases.
    """
    ids = [persona.id for persona in personas]
    if settings.base not in ids:
        raise source.refusal(
            f"the base persona {settings.base!r}, which all others are compared with, is not among the personas. "
            f"{nearest(settings.base, ids, 'persona')}; set `base` to one of them, or add `{{id: none, text: null}}`",
            "base" if settings.base != "none" else "personas",  # the default is seldom written
        )
    _refuse_missing_conditions(settings, task, source)
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
