"""Pairs of runs that are patched into each other, with those of their controls. Knows tokens; loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from probe.capture import PassInput
from probe.mechanism.patching.groups import Alignment, Layout, align
from probe.prompts import LabelTokens, Prompt
from probe.values import Case, Condition


@dataclass(frozen=True, eq=False)
class Run:
    """A prompt with the text that is forced after it (none where the label is read at the prompt's end)."""

    prompt: Prompt
    labels: LabelTokens
    text: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens that are fed."""
        return self.prompt.token_ids + self.text

    @property
    def layout(self) -> Layout:
        """Where its parts stand."""
        prompt = self.prompt
        return Layout(
            len(prompt.token_ids), prompt.persona_tokens, prompt.user_tokens, prompt.case_tokens, len(self.text)
        )

    @property
    def row(self) -> PassInput:
        """The run as the engine takes it."""
        prompt, given = self.prompt, self.text or None
        spans = (prompt.persona_end, prompt.case_tokens)
        return PassInput(prompt.token_ids, *spans, self.labels, given=given, persona_tokens=prompt.persona_tokens)


@dataclass(frozen=True, eq=False)
class PatchUnit:
    """One persona on one case under one condition at one label site: its run, the base's, and those of the controls.

    ``matched``: the base run has a sentence of the persona's length in its place. ``other`` are the runs of the
    persona and of the base on another case.
    """

    persona: str
    case: Case
    condition: Condition
    read: str
    donor: Run
    base: Run
    matched: bool
    study_base: Run | None = None
    nonsense: Run | None = None
    other: tuple[Run, Run] | None = None

    @cached_property
    def aligned(self) -> Alignment:
        """The persona's tokens and the base's."""
        return self._with(self.donor)

    @cached_property
    def aligned_other(self) -> tuple[Alignment, Alignment]:
        """The tokens of the persona's run on the other case, and of the base's, with those of the base run."""
        assert self.other is not None
        persona, base = self.other
        return self._with(persona, same_case=False), self._with(base, same_case=False)

    def _with(self, donor: Run, *, same_case: bool = True) -> Alignment:
        return align(donor.layout, self.base.layout, donor.ids, self.base.ids, same_case=same_case)

    @property
    def identity(self) -> list[object]:
        """What its reads depend on, beside the model and the grid."""
        runs = (self.donor, self.base, self.study_base, self.nonsense, *(self.other or ()))
        told = [None if run is None else [run.prompt.tokens_sha, list(run.text), run.labels.ids] for run in runs]
        return [
            self.persona,
            self.case.id,
            self.case.target,
            self.case.stratum,
            self.condition.changed,
            self.read,
            told,
        ]


@dataclass(frozen=True, eq=False)
class PatchPart:
    """Units that are run and saved together; the key changes with anything that their reads depend on."""

    key: str
    persona: str
    units: tuple[PatchUnit, ...]
