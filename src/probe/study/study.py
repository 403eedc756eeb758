"""A study: one frozen value that names model, personas, task, cases and conditions, and lists its cells.

Knows files and the fit of their parts; knows no tokenizer, template, model or store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from probe.study.case_files import case_sample
from probe.study.checked import checked, refuse_same_ids
from probe.study.fits import evenly, refuse_misfits, unknown_id
from probe.study.given_texts import (
    GivenSpec,
    given_entry,
    read_given,
    refuse_unknown_cases,
    refuse_unknown_personas,
)
from probe.study.intervention_entries import (
    Arm,
    check_arms,
    intervention_entries,
    read_interventions,
    refuse_unfit_arms,
)
from probe.study.label_spec import LabelSpec
from probe.study.located import Located, in_memory
from probe.study.many_models import names_many, one_by_one
from probe.study.model_source import model_from
from probe.study.overrides import overridden, parse_override
from probe.study.persona_files import persona_entry, read_personas
from probe.study.sources import cases_from, personas_from, task_from
from probe.study.spec import (
    USUAL_ANALYSES,
    CaptureSpec,
    ConditionSpec,
    GenerationSpec,
    ModelSpec,
    PlannedContrast,
    StudyFile,
)
from probe.study.task_files import read_task, task_entry
from probe.study.yaml_marks import read_yaml
from probe.values import Case, Cell, Condition, GivenText, Persona, Recipe, StudyError, Task, sha256_of


@dataclass(frozen=True)
class Study:
    """Everything that a run needs to know, checked when it is made.

    ``base`` is the id of the persona that all others are compared with. ``cases`` are those that ``limit`` left, so
    ``limit`` is a record: ``limited(n)`` gives a smaller study. ``source`` is the study file, if there was one.
    ``given`` are texts that the personas are made to answer with, beside their own answers. Each of ``interventions``
    makes arms of their own: its personas again, under it.

    Raises:
        StudyError: a setting is wrong, or two parts do not fit together.
    """

    name: str
    model: ModelSpec
    personas: tuple[Persona, ...]
    task: Task
    cases: tuple[Case, ...]
    conditions: ConditionSpec = field(default_factory=ConditionSpec)
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    generation: GenerationSpec = field(default_factory=GenerationSpec)
    analyses: tuple[str, ...] = USUAL_ANALYSES
    base: str = "none"
    confirm: tuple[PlannedContrast, ...] = ()
    split_seed: int = 0
    limit: int | None = None
    source: Path | None = None
    labels: LabelSpec = field(default_factory=LabelSpec)
    given: GivenSpec | None = None
    interventions: tuple[Arm, ...] = ()

    def __post_init__(self) -> None:
        place = in_memory(self._settings(), "study")
        settings = checked(StudyFile, place)
        parts = {"personas": [persona_entry(persona) for persona in self.personas], "task": task_entry(self.task)}
        read_personas(in_memory(parts, "study").child("personas"))
        read_task(in_memory(parts, "study").child("task"))
        refuse_same_ids(((case.id, "study at cases") for case in self.cases), "case")
        refuse_misfits(settings, self.personas, self.task, self.cases, place)
        _check_given(self.given, self.cases, self.limit)
        refuse_unknown_personas(self.given, self.personas, place)
        check_arms(self.interventions, self.personas)
        if self.limit is not None and len(self.cases) > self.limit:
            raise StudyError(
                f"study: `limit` records {self.limit} cases, but there are {len(self.cases)}. Use study.limited(n)"
            )

    @staticmethod
    def load(path: str | Path, *, overrides: Sequence[str] = (), limit: int | None = None) -> Study:
        """The study of a YAML file.

        ``overrides`` are settings as written after ``--set``. ``limit`` keeps that many cases in all, spread evenly
        over the strata, the first in the file of each; it goes before the file's own ``limit``.

        Raises:
            StudyError: the first broken rule, as ``file:line:column: sentence. Remedy``.
        """
        studies = Study.load_all(path, overrides=overrides, limit=limit)
        if len(studies) > 1:
            raise StudyError(
                f"{path}: `model` names {len(studies)} models, and this takes one. Choose it: --set model.id=..."
            )
        return studies[0]

    @staticmethod
    def load_all(path: str | Path, *, overrides: Sequence[str] = (), limit: int | None = None) -> tuple[Study, ...]:
        """One study for each model of a YAML file whose `model` may be a list; see :meth:`load`.

        Those of a list are named after the file's name and their model, ``name.model``; ``overrides`` hold for each,
        and one of `model.id` replaces the list.

        Raises:
            StudyError: as :meth:`load`.
        """
        path = Path(path)
        settings = [*overrides, *([f"limit={limit}"] if limit is not None else [])]
        given = [parse_override(text) for text in settings]
        document = read_yaml(path)
        if not names_many(document):
            return (_built(overridden(document, given), path.parent, source=path),)
        if any(override.path in (("model",), ("model", "id")) for override in given):
            alone = replace(document, value={**document.value, "model": {}})
            return (_built(overridden(alone, given), path.parent, source=path),)
        each = (overridden(one, given) for one in one_by_one(document))
        return tuple(_built(one, path.parent, source=path) for one in each)

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any], *, directory: str | Path = ".") -> Study:
        """The study of a mapping with the keys of a study file; paths in it are relative to ``directory``.

        Raises:
            StudyError: the first broken rule, with the path of keys that leads to it.
        """
        return _built(in_memory(mapping, "study"), Path(directory))

    def to_mapping(self, *, cases: bool = True) -> dict[str, Any]:
        """The resolved study in plain JSON values; ``Study.from_mapping`` reads it back as an equal study.

        With ``cases=False`` the cases are replaced by their number and hash, for records that people read.
        """
        samples = [case_sample(case) for case in self.cases]
        return {
            "name": self.name,
            "model": asdict(self.model),
            "personas": [persona_entry(persona) for persona in self.personas],
            "task": task_entry(self.task),
            "cases": samples if cases else {"n": len(samples), "sha256": sha256_of(samples)},
            "conditions": _listed(asdict(self.conditions)),
            "capture": _listed(asdict(self.capture)),
            "labels": _listed(asdict(self.labels)),
            "generation": asdict(self.generation),
            "given": given_entry(self.given, texts=cases),
            "interventions": intervention_entries(self.interventions, arrays=cases) or None,
            "analyses": list(self.analyses),
            "base": self.base,
            "confirm": [asdict(contrast) for contrast in self.confirm],
            "split_seed": self.split_seed,
            "limit": self.limit,
        }

    def limited(self, n: int) -> Study:
        """This study with ``n`` cases in all, spread evenly over the strata in file order."""
        return replace(self, cases=evenly(self.cases, n), limit=n)

    def cells(self, placement: str | None = None) -> tuple[Cell, ...]:
        """Every cell to capture: persona by persona, then case by case, then condition by condition.

        Those of given texts come after the generated ones of their case, and behind all of these they come again under
        each intervention. ``placement`` is what the study's placement comes to for a template; without it ``auto``
        counts as ``system``.
        """
        if placement is None:
            placement = "system" if self.conditions.placement == "auto" else self.conditions.placement
        if placement not in ("system", "user"):
            raise StudyError(f"a cell's placement is 'system' or 'user', found {placement!r}. Resolve 'auto' first")
        cells: list[Cell] = []
        for persona in self.personas:
            own = tuple(self._conditions(persona, placement))
            for case in self.cases:
                conditions = (*(() if self.given and self.given.only else own), *self._given(persona, case, own))
                conditions = (*conditions, *self._intervened(persona, conditions))
                cells += [Cell(persona.id, case.id, condition) for condition in conditions]
        return tuple(cells)

    def persona(self, persona_id: str) -> Persona:
        """The persona with this id; an unknown id raises StudyError with the nearest known one."""
        if persona_id not in self._personas_by_id:
            raise unknown_id(self._personas_by_id, persona_id, "persona")
        return self._personas_by_id[persona_id]

    def case(self, case_id: str) -> Case:
        """The case with this id; an unknown id raises StudyError with the nearest known one."""
        if case_id not in self._cases_by_id:
            raise unknown_id(self._cases_by_id, case_id, "case")
        return self._cases_by_id[case_id]

    @property
    def strata(self) -> tuple[str, ...]:
        """The strata of the cases, in order of first appearance."""
        return tuple(dict.fromkeys(case.stratum for case in self.cases))

    @cached_property
    def _personas_by_id(self) -> dict[str, Persona]:
        return {persona.id: persona for persona in self.personas}

    @cached_property
    def _cases_by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self.cases}

    def _conditions(self, persona: Persona, placement: str) -> Iterator[Condition]:
        chosen = self.conditions
        wordings = range(chosen.n_wordings(persona.id, len(persona.wordings)))
        rotations: Sequence[int]
        if isinstance(chosen.rotations, tuple):
            rotations = chosen.rotations
        else:
            rotations = range(len(self.task.options) if chosen.rotations == "all" else 1)
        seeds = self.generation.seed_numbers
        for wording, instruction, rotation, seed in product(wordings, chosen.instructions, rotations, seeds):
            yield Condition(wording, instruction, rotation, placement=placement, seed=seed)

    def _given(self, persona: Persona, case: Case, own: Sequence[Condition]) -> Iterator[Condition]:
        """The conditions of the texts given for a case, in which nothing is drawn: one for each, whatever the seeds."""
        if self.given is not None and self.given.store is not None:
            raise StudyError(f"the given texts of {self.given.store} are not read yet; `probe.run` reads them")
        for condition in dict.fromkeys(replace(condition, seed=0) for condition in own):
            for text in self._texts_by_case.get(case.id, ()):
                if text.is_for(persona.id) and text.fits(condition.instruction, condition.rotation):
                    yield replace(condition, given=text.source)

    def _intervened(self, persona: Persona, own: Sequence[Condition]) -> Iterator[Condition]:
        """A persona's conditions once more under each intervention that is for it."""
        for arm in self.interventions:
            if not isinstance(arm, Recipe):
                raise StudyError(f"the intervention {arm.name!r} is not read yet; `probe.run` reads its arrays")
            if arm.is_for(persona.id):
                yield from (replace(condition, intervention=arm.sha256) for condition in own)

    @cached_property
    def _texts_by_case(self) -> dict[str, list[GivenText]]:
        found: dict[str, list[GivenText]] = {}
        for text in self.given.texts if self.given else ():
            found.setdefault(text.case, []).append(text)
        return found

    def _settings(self) -> StudyFile:
        return StudyFile(
            self.name,
            self.model,
            personas=None,
            task=None,
            cases=None,
            conditions=self.conditions,
            capture=self.capture,
            labels=self.labels,
            generation=self.generation,
            analyses=self.analyses,
            base=self.base,
            confirm=self.confirm,
            split_seed=self.split_seed,
            limit=self.limit,
        )


def _built(document: Located, directory: Path, source: Path | None = None) -> Study:
    settings = checked(StudyFile, document)
    model = model_from(settings.model, document.child("model"), directory)
    personas = personas_from(document.child("personas"), directory)
    task = task_from(document.child("task"))
    cases = cases_from(document.child("cases"), directory, task)
    given = read_given(document.child("given"), directory) if "given" in document.value else None
    asked = "interventions" in document.value
    arms = read_interventions(document.child("interventions"), directory) if asked else ()
    # A record of a limited study holds `limit` cases already; its given texts may answer the others.
    if len(cases) != settings.limit:
        refuse_unknown_cases(given, cases, document)
    refuse_unknown_personas(given, personas, document)
    refuse_unfit_arms(arms, personas, document)
    whole = settings if len(cases) == settings.limit else replace(settings, limit=None)
    refuse_misfits(whole, personas, task, cases, document)
    cases = evenly(cases, settings.limit)
    return Study(
        settings.name,
        model,
        personas,
        task,
        cases,
        settings.conditions,
        settings.capture,
        settings.generation,
        settings.analyses,
        settings.base,
        settings.confirm,
        settings.split_seed,
        settings.limit,
        source,
        settings.labels,
        given,
        arms,
    )


def _check_given(given: GivenSpec | None, cases: tuple[Case, ...], limit: int | None) -> None:
    if given is None:
        return
    place = in_memory({"given": given_entry(given)}, "study")
    read_given(place.child("given"), Path())
    if limit is None:  # else texts may answer cases that the limit left out
        refuse_unknown_cases(given, cases, place)


def _listed(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in mapping.items()}
