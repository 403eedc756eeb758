"""What a patching run does, before a weight is loaded: pairs of runs, aligned by role, in parts. Knows a tokenizer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from probe.mechanism.patching.grid import NONSENSE, OTHER_CASE, Grid, grid_of
from probe.mechanism.patching.reads import LATENT
from probe.prompts import LetterVocabulary
from probe.prompts.matched import NEUTRAL, matched_text
from probe.prompts.matched import NONSENSE as NONSENSE_TEXTS
from probe.stages.patch_pairs import PatchPart, PatchUnit, Run
from probe.stages.patch_request import PatchRequest
from probe.stages.patch_texts import StatedText
from probe.stages.preparation import answer_sites
from probe.stages.resolution import Resolved
from probe.study import Study
from probe.values import Case, Condition, ProbeError, RowRefused, sha256_of
from probe.values.nearest import nearest

PART_CASES = 16
"""Cases of one part, which is saved when it is done."""


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """Everything that is to be run. ``personas`` has the sentences that stand for each; ``left_out`` counts (persona,
    read, reason) that have no unit, ``absent`` (persona, read, control, group, reason) that have no tokens to patch."""

    grid: Grid
    parts: tuple[PatchPart, ...]
    personas: Mapping[str, Mapping[str, str | None]]
    left_out: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    absent: Mapping[tuple[str, str, str, str, str], int] = field(default_factory=dict)

    @property
    def n_units(self) -> int:
        """Units of all parts."""
        return sum(len(part.units) for part in self.parts)


class PatchPlanner:
    """Plans the runs of a study: ``texts`` are the answers up to their letters, by (author, case, condition)."""

    def __init__(
        self,
        resolved: Resolved,
        request: PatchRequest,
        texts: Mapping[tuple[str, str, Condition], StatedText | str] | None = None,
    ) -> None:
        self._resolved, self._request, self._texts = resolved, request, texts or {}
        self._study = resolved.study
        self._sites = answer_sites(resolved)
        self._vocabularies: dict[int, LetterVocabulary] = {}
        self._left: Counter[tuple[str, str, str]] = Counter()
        self._cases = chosen_cases(self._study, request.cases)
        self._conditions = patched_conditions(self._study, resolved.placement)

    def plan(self, model: str) -> PatchPlan:
        """All units in parts; ``model`` names the weights and the numerics that reads depend on.

        Raises:
            ProbeError: a persona, stream or point that is asked for is not there, or nothing can be patched.
        """
        asked, shape = self._request, self._resolved.shape
        grid = grid_of(shape.n_layers, asked.points, asked.streams, n_heads=shape.n_heads)
        about: dict[str, Mapping[str, str | None]] = {}
        parts = []
        for persona in patched_personas(self._study, asked.personas):
            told = self._sentences(persona)
            about[persona] = told
            for start in range(0, len(self._cases), PART_CASES):
                units = tuple(self._units(persona, told, self._cases[start : start + PART_CASES]))
                if units:
                    identity = [model, repr(grid), asked.identity, [unit.identity for unit in units]]
                    parts.append(PatchPart(sha256_of(identity)[:24], persona, units))
        if not parts:
            reasons = "; ".join(f"{n:,} {why}" for (_, _, why), n in self._left.items()) or "there is no other persona"
            raise ProbeError(f"there is nothing to patch in this study: {reasons}")
        return PatchPlan(grid, tuple(parts), about, dict(self._left), absent_groups(parts))

    def _sentences(self, persona: str) -> dict[str, str | None]:
        """The persona's text, and those that stand in its place, found with the first case."""
        text, first = self._study.persona(persona).text(), (self._cases[0], self._conditions[0])
        builder = self._resolved.builder
        neutral = matched_text(builder, text, *first, NEUTRAL) if self._request.neutral else None
        nonsense = matched_text(builder, text, *first, NONSENSE_TEXTS) if neutral and self._request.controls else None
        return {"text": text, "neutral": neutral, "nonsense": nonsense}

    def _units(self, persona: str, told: Mapping[str, str | None], cases: Sequence[Case]) -> Iterator[PatchUnit]:
        for read in self._request.reads:
            for case in cases:
                for condition in self._conditions:
                    try:
                        unit = self._unit(persona, told, case, condition, read)
                    except RowRefused as refusal:
                        self._left[persona, read, refusal.kind] += 1
                        continue
                    if isinstance(unit, str):
                        self._left[persona, read, unit] += 1
                    else:
                        yield unit

    def _unit(
        self, persona: str, told: Mapping[str, str | None], case: Case, condition: Condition, read: str
    ) -> PatchUnit | str:
        """A unit, or why there is none."""
        found = self._text(persona, case, condition, read)
        if isinstance(found, str):
            return found
        study_base, neutral = self._study.persona(self._study.base).text(), told["neutral"]
        matched = neutral is not None
        donor = self._run(told["text"], case, condition, found)
        base = self._run(neutral if matched else study_base, case, condition, found)
        context = self._resolved.shape.context
        if context is not None and max(len(donor.ids), len(base.ids)) > context:
            return "too long for the context"
        unit = PatchUnit(persona, case, condition, read, donor, base, matched)
        if matched:
            unit = replace(unit, study_base=self._run(study_base, case, condition, found))
        if told["nonsense"] is not None:
            unit = replace(unit, nonsense=self._run(told["nonsense"], case, condition, found))
        if self._request.controls:
            unit = replace(unit, other=self._other(persona, told, case, condition, read))
        return unit

    def _other(
        self, persona: str, told: Mapping[str, str | None], case: Case, condition: Condition, read: str
    ) -> tuple[Run, Run] | None:
        """The same two runs on another case: of another family and, where there is one, of as many tokens."""
        other = self._partners[condition].get(case.id)
        if other is None:
            return None
        found = self._text(persona, other, condition, read)
        if isinstance(found, str):
            return None
        base_text = told["neutral"] if told["neutral"] is not None else self._study.persona(self._study.base).text()
        return self._run(told["text"], other, condition, found), self._run(base_text, other, condition, found)

    @cached_property
    def _partners(self) -> dict[Condition, dict[str, Case]]:
        """The case that lends its states to each case, by condition."""
        base, build = self._study.persona(self._study.base).text(), self._resolved.builder.build
        found: dict[Condition, dict[str, Case]] = {}
        for condition in self._conditions:
            lengths: dict[str, int] = {}
            for case in self._cases:
                try:
                    tokens = build(base, case, condition).case_tokens
                except RowRefused:
                    continue
                if tokens is not None:
                    lengths[case.id] = tokens[1] - tokens[0]
            found[condition] = partners([case for case in self._cases if case.id in lengths], lengths)
        return found

    def _text(self, persona: str, case: Case, condition: Condition, read: str) -> StatedText | str | None:
        """The text that is forced, None where none is, or why it cannot be."""
        if read == LATENT:
            return None
        author = persona if self._request.text == "own" else self._study.base
        found = self._texts.get((author, case.id, condition), "no answer was captured")
        return found if isinstance(found, StatedText) else f"text left out: {found}"

    def _run(self, persona_text: str | None, case: Case, condition: Condition, text: StatedText | None) -> Run:
        prompt = self._resolved.builder.build(persona_text, case, condition)
        if text is None:
            return Run(prompt, self._sites.reads(prompt, condition).labels)
        rotation = condition.rotation
        if rotation not in self._vocabularies:
            letters = self._study.task.letters_by_option(rotation)
            self._vocabularies[rotation] = LetterVocabulary(self._resolved.tokenizer, letters)
        return Run(prompt, self._vocabularies[rotation].counterparts(text.letter), text.tokens)


def patched_personas(study: Study, asked: Sequence[str]) -> tuple[str, ...]:
    """The personas whose runs are patched: those that are asked for, else all but the base.

    Raises:
        ProbeError: one is not in the study, or is its base.
    """
    known = [persona.id for persona in study.personas]
    for name in asked:
        if name not in known:
            raise ProbeError(f"the study has no persona {name!r} to patch. {nearest(name, known, 'persona')}")
        if name == study.base:
            raise ProbeError(f"{name!r} is the base, into which the others are patched; leave it out, or set --base")
    return tuple(asked) or tuple(name for name in known if name != study.base)


def patched_conditions(study: Study, placement: str) -> tuple[Condition, ...]:
    """The conditions of the base's cells: its first wording and first seed, unedited, in every rotation and so on.

    Raises:
        ProbeError: it has none, as in a study whose answers are all given.
    """
    own = dict.fromkeys(cell.condition for cell in study.cells(placement) if cell.persona == study.base)
    plain = [each for each in own if not (each.wording or each.given or each.intervention)]
    if not plain:
        raise ProbeError("patching needs cells that are answered by the model itself; leave out `given.only`")
    seed = min(each.seed for each in plain)
    return tuple(each for each in plain if each.seed == seed)


def chosen_cases(study: Study, n: int | None) -> tuple[Case, ...]:
    """``n`` cases (None: all), spread over the strata and drawn by the hash of their ids, in the study's order."""
    if n is None or n >= len(study.cases):
        return study.cases
    queues = [
        sorted(
            (case for case in study.cases if case.stratum == stratum),
            key=lambda case: _hashed(str(study.split_seed), case.id),
        )
        for stratum in study.strata
    ]
    drawn: set[str] = set()
    for turn in range(len(study.cases)):
        drawn |= {queue[turn].id for queue in queues[: n - len(drawn)] if turn < len(queue)}
        if len(drawn) == n:
            break
    return tuple(case for case in study.cases if case.id in drawn)


def partners(cases: Sequence[Case], lengths: Mapping[str, int]) -> dict[str, Case]:
    """For each case another one, of another family: with as many tokens where there is such a one.

    Of these the one that has lent least often is taken, by the hash of both where several have: so that the mean over
    borrowed states is as near as can be to that over all cases.
    """
    found: dict[str, Case] = {}
    lent: Counter[str] = Counter()
    for case in cases:
        strangers = [one for one in cases if one.id != case.id and (not case.family or one.family != case.family)]
        alike = [one for one in strangers if lengths[one.id] == lengths[case.id]]
        if strangers:
            chosen = min(alike or strangers, key=lambda one: (lent[one.id], _hashed(case.id, one.id)))
            found[case.id] = chosen
            lent[chosen.id] += 1
    return found


def absent_groups(parts: Sequence[PatchPart]) -> dict[tuple[str, str, str, str, str], int]:
    """In how many units each group has no tokens that correspond, by persona, read, control and reason."""
    counts: Counter[tuple[str, str, str, str, str]] = Counter()
    for part in parts:
        for unit in part.units:
            for control, aligned in (
                ("", unit.aligned),
                *(((OTHER_CASE, unit.aligned_other[0]),) if unit.other else ()),
            ):
                for group, why in aligned.absent.items():
                    reason = why if control == "" else "another number of tokens"
                    counts[unit.persona, unit.read, control, group, reason] += 1
            for control, run in ((NONSENSE, unit.nonsense), (OTHER_CASE, unit.other)):
                if run is None and unit.matched:
                    counts[unit.persona, unit.read, control, "every group", "no such run"] += 1
    return dict(counts)


def _hashed(*names: str) -> str:
    return hashlib.sha256("\x1f".join(names).encode()).hexdigest()
