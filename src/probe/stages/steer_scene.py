"""What a comparison of prompting and steering begins with: captures, directions, parts of the cases, prompts as rows.

Knows stores, studies and prompts; runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from probe import behaviour
from probe.capture import PassInput
from probe.capture.planning import JobPlanner
from probe.mechanism import Activations
from probe.mechanism.geometry.directions import MAKERS, PARTS, contrast_of
from probe.mechanism.relation.verdicts import MARGIN
from probe.mechanism.splits import families_of, part_of, require_apart
from probe.mechanism.steering.label_reads import JudgedCases, outcomes
from probe.prompts import label_tokens
from probe.stages.activations import activations
from probe.stages.resolution import Resolved
from probe.store import Store
from probe.study import Study
from probe.study.fits import evenly
from probe.values import Case, Cell, Condition, Direction, ProbeError
from probe.values.nearest import nearest

SITES = ("prompt_end", "answer")
"""Where directions can be fitted and runs be compared."""


@dataclass(frozen=True)
class SteerRequest:
    """What is compared. Empty ``personas`` and ``layers`` are all of the study's but the base, and all captured
    residual points between the embedding and the last.

    ``site`` is where directions are fitted and labels read: ``prompt_end``, where an edit acts on the last prompt
    token and, while answering, on every new one; or ``answer``, after the base's own text, where it acts on the answer
    alone. ``maker`` makes the directions. ``n_random`` directions of each random kind stand beside each persona's, and
    ``n_generated`` of them where answers are written. At most ``dose_cases`` validation cases settle layer and
    strength, and at most ``text_cases`` held-out cases are answered in writing (0: none). ``seed`` draws the random
    directions.
    """

    base: str | None = None
    personas: tuple[str, ...] = ()
    site: str = "prompt_end"
    layers: tuple[int, ...] = ()
    maker: str = "paired_mean"
    n_random: int = 99
    n_generated: int = 20
    dose_cases: int = 64
    text_cases: int = 100
    margin: float = MARGIN
    seed: int = 0

    def __post_init__(self) -> None:
        for what, asked, known in (("site", self.site, SITES), ("maker", self.maker, tuple(MAKERS))):
            if asked not in known:
                raise ProbeError(f"steering knows no {what} {asked!r}. {nearest(asked, known, what)}")
        if self.n_random < 1 or self.dose_cases < 2 or self.n_generated < 0 or self.text_cases < 0:
            raise ProbeError("steering needs one random direction and two validation cases at least; ask for more")


@dataclass(frozen=True)
class Prompted:
    """Whose prompt a row has: a persona's wording."""

    persona: str
    wording: int = 0


@dataclass(frozen=True, eq=False)
class Scene:
    """A study with its captures, split into cases that fit, that settle and that judge.

    ``families`` are those of the cases; ``texts`` the tokens that the base wrote before its letter, by case, where the
    site is ``answer``.
    """

    study: Study
    resolved: Resolved
    store: Store
    request: SteerRequest
    base: str
    read: Activations
    texts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def parts(self) -> Mapping[str, tuple[Case, ...]]:
        """The cases of each part, by the hash of their family with the study's split seed.

        Raises:
            ProbeError: a part has no case.
        """
        usable = [case for case in self._known if self.request.site == "prompt_end" or case.id in self.texts]
        family = np.array([self.families[case.id] for case in usable], dtype=object)
        part = part_of(family, PARTS, self.study.split_seed) if usable else np.array([])
        found = {name: tuple(case for case, own in zip(usable, part, strict=True) if own == name) for name in PARTS}
        if empty := [name for name, cases in found.items() if len(cases) < 2]:
            raise ProbeError(
                f"cases are split into {', '.join(PARTS)} by their families, and of {len(usable)} captured cases the "
                f"part {empty[0]!r} has {len(found[empty[0]])}; capture more cases, or choose another split_seed"
            )
        return found

    @cached_property
    def families(self) -> dict[str, str]:
        """The family of each captured case."""
        return dict(zip(self.read.table["case"].astype(str), map(str, families_of(self.read.table)), strict=True))

    @property
    def personas(self) -> tuple[str, ...]:
        """The personas that are compared with the base: those asked for, else all but wordings of a neutral control."""
        return tuple(one for one in self._asked or self.fitted if one != self.base)

    @cached_property
    def fitted(self) -> tuple[str, ...]:
        """The personas that have a direction: all captured ones but the base and the neutral controls."""
        table = self.read.table
        apart = {self.base, *behaviour.control_personas(table)}
        return tuple(one for one in dict.fromkeys(table["persona"]) if one not in apart)

    @property
    def layers(self) -> tuple[int, ...]:
        """The candidate layers."""
        last = self.resolved.shape.n_layers
        asked = self.request.layers or tuple(layer for layer in self.read.layers if 0 < layer < last)
        if lacking := [layer for layer in asked if layer not in self.read.layers]:
            raise ProbeError(f"residual point {lacking[0]} was not captured; there are {list(self.read.layers)}")
        if not asked:
            raise ProbeError(
                f"directions are fitted between the embedding and the last residual point {last}, and the captures "
                f"have {list(self.read.layers)}; set capture.layers"
            )
        return tuple(sorted(asked))

    def settling(self) -> tuple[Case, ...]:
        """The validation cases that settle layer and strength, spread over the strata."""
        return evenly(self.parts["validation"], self.request.dose_cases)

    def judged(self, cases: Sequence[Case]) -> JudgedCases:
        """Cases as the estimators take them."""
        task = self.study.task
        high = task.option_ids.index(task.high_risk) if task.high_risk in task.option_ids else None
        return JudgedCases(
            np.array([case.id for case in cases], dtype=object),
            np.array([self.families[case.id] for case in cases], dtype=object),
            np.array([case.stratum for case in cases], dtype=object),
            np.array([task.option_ids.index(case.target) for case in cases]),
            True,
            high,
        )

    def direction(self, persona: str, layer: int) -> Direction:
        """A persona's direction at a layer, fitted on the training families alone.

        Raises:
            ProbeError: it is undefined there, or one of the other families fitted it.
        """
        table = self.read.table
        mask = table["persona"].to_numpy(dtype=object) == self.base
        contrast = contrast_of(table, self.read.at(layer, self.request.site), persona, self.base, mask)
        made = MAKERS[self.request.maker](contrast.only(self.training))
        for name in ("validation", "test"):
            family = np.array([self.families[case.id] for case in self.parts[name]], dtype=object)
            require_apart(made.fitted_on, family, f"the direction of {persona!r} at {made.site}")
        return made

    def base_rows(self, layer: int) -> tuple[Float[np.ndarray, "row width"], np.ndarray, Float[np.ndarray, " row"]]:
        """The base's residuals of the training families at a layer, their families, and their expected urgency."""
        table = self.read.table
        site = self.read.at(layer, self.request.site)
        here = table.iloc[site.places]
        family = families_of(here)
        kept = (here["persona"].to_numpy(dtype=object) == self.base) & np.isin(family, list(self.training))
        prefix = "logp_" if self.request.site == "prompt_end" else "stated_logp_"
        logp = here.loc[kept, [f"{prefix}{option}" for option in self.study.task.option_ids]].to_numpy(float)
        cases = self.judged([self._by_id[case] for case in here.loc[kept, "case"].astype(str)])
        score = next(iter(outcomes(logp, cases).values()))
        return site.x[kept].astype(np.float64), family[kept], score

    def rows(self, prompted: Prompted, cases: Sequence[Case]) -> list[PassInput]:
        """The prompts of a persona's wording on these cases, as rows; at ``answer`` with the base's text after them.

        Raises:
            ProbeError: a prompt cannot be made, or its labels not be read.
        """
        condition = Condition(prompted.wording, self.first.instruction, self.first.rotation, self.first.placement)
        found = []
        for case in cases:
            job = self._planner.job(
                Cell(prompted.persona, case.id, condition), 0, planned=lambda _, __: None, keep_text=True
            )
            given, labels = None, job.labels
            if self.request.site == "answer":
                given = self.texts[case.id]
                said = str(self.resolved.tokenizer.decode(list(given), clean_up_tokenization_spaces=False))
                letters = self.study.task.letters_by_option(condition.rotation)
                labels = label_tokens(self.resolved.tokenizer, job.prompt.text + said, letters)
            prompt = job.prompt
            found.append(
                PassInput(
                    prompt.token_ids,
                    prompt.persona_end,
                    prompt.case_tokens,
                    labels,
                    given=given,
                    persona_tokens=prompt.persona_tokens,
                )
            )
        return found

    def rewording(self, persona: str) -> Prompted | None:
        """Another wording of the same persona, the ceiling; None where it has but one."""
        return Prompted(persona, 1) if len(self.study.persona(persona).wordings) > 1 else None

    def is_nonsense(self, persona: str) -> bool:
        """Whether a persona is one that means nothing."""
        return self.study.persona(persona).role == "placebo"

    @cached_property
    def _known(self) -> tuple[Case, ...]:
        there = set(self.read.table["case"].astype(str))
        return tuple(case for case in self.study.cases if case.id in there)

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {case.id: case for case in self._known}

    @cached_property
    def training(self) -> frozenset[str]:
        """The case families that fit directions."""
        return frozenset(self.families[case.id] for case in self.parts["train"])

    @cached_property
    def _planner(self) -> JobPlanner:
        return JobPlanner(self.resolved.builder, self.study.personas, self.study.cases)

    @cached_property
    def first(self) -> Condition:
        """The condition that is compared: the study's first."""
        return next(iter(self.study.cells(self.resolved.placement))).condition

    @cached_property
    def _asked(self) -> tuple[str, ...]:
        known = tuple(dict.fromkeys(self.read.table["persona"]))
        for name in self.request.personas:
            if name not in known:
                raise ProbeError(f"there are no captures of the persona {name!r}. {nearest(name, known, 'persona')}")
        return self.request.personas


def base_texts(store: Store, base: str, first: Condition) -> dict[str, tuple[int, ...]]:
    """The tokens that the base's answer to each case has before its letter, where a letter stands behind a text.

    Under the instruction and rotation of one condition.
    """
    view = store.select(persona=base, wording=0, given="", intervention="")
    found: dict[str, tuple[int, ...]] = {}
    for record in view.records():
        at, own = record.positions.get("answer", -1), record.cell.condition
        n = at - len(record.prompt_tokens) + 1
        same = (own.instruction, own.rotation) == (first.instruction, first.rotation)
        if n > 0 and same and record.cell.case not in found:
            found[record.cell.case] = tuple(record.gen_tokens[:n])
    return found


def base_of(study: Study, request: SteerRequest) -> str:
    """Whom personas are compared with.

    Raises:
        ProbeError: it is one of the personas that are asked for.
    """
    base = request.base or study.base
    if base in request.personas:
        others = [one.id for one in study.personas if one.id != base and one.role != "control"]
        raise ProbeError(
            f"{base!r} is the base, which every persona is compared with, and no persona to compare; ask for "
            f"{' or '.join(map(repr, others[:3])) or 'another persona'}, or name another base (--base)"
        )
    return base


def scene_of(study: Study, resolved: Resolved, store: Store, request: SteerRequest) -> Scene:
    """Everything that a comparison begins with.

    Raises:
        ProbeError: the base or a persona was not captured, nor the site; or the base is asked for as a persona.
    """
    base = base_of(study, request)
    read = activations(store)
    known = tuple(dict.fromkeys(read.table["persona"]))
    if base not in known:
        raise ProbeError(f"there are no captures of the base persona {base!r}. {nearest(base, known, 'persona')}")
    if request.site not in read.positions:
        raise ProbeError(
            f"directions are fitted at {request.site}, and the captures have {', '.join(read.positions)}; set "
            "capture.positions"
        )
    scene = Scene(study, resolved, store, request, base, read)
    return replace(scene, texts=base_texts(store, base, scene.first)) if request.site == "answer" else scene
