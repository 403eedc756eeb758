"""The units of a plan over a loaded model: donors read token by token, arms swept, reads as rows. Knows both wings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from probe.capture import sweep, token_reads
from probe.mechanism.patching.grid import (
    ATTN_OUT,
    DENOISING,
    HEAD_OUT,
    KEYS_VALUES,
    MLP_OUT,
    NOISING,
    NONSENSE,
    OTHER_CASE,
    OTHER_CASE_BASE,
    RESID,
    Grid,
    Place,
)
from probe.mechanism.patching.groups import ALL_TOKENS, PERSONA, Tokens
from probe.mechanism.patching.paths import DIRECT, PLAYERS, coalition_name, coalitions, players
from probe.mechanism.patching.reads import BASE_RUN, DONOR_RUN, PATCHED, PATH, STUDY_BASE, Arm
from probe.models.points import HookPoint
from probe.values import LabelRead, TokenPatch

if TYPE_CHECKING:
    from probe.models.protocol import Backend
    from probe.stages.patch_pairs import PatchUnit, Run
    from probe.stages.patch_request import PatchRequest

UNITS, UNIT_BYTES = 4, 2**29
"""Units that run together, and about how many bytes of donors' activations are held at once."""


@dataclass(frozen=True, eq=False)
class Donor:
    """The activations of one run, every token, fp32; slices are made once, for many arms have the same."""

    values: Mapping[tuple[str, int], np.ndarray]
    _slices: dict[tuple[str, int, Tokens], np.ndarray] = field(default_factory=dict)

    def patch(
        self, stream: str, layer: int, pair: tuple[Tokens, Tokens], columns: tuple[int, int] | None = None
    ) -> TokenPatch:
        """The stream at the first tokens of a pair, put at the second."""
        own, theirs = pair
        key = (stream, layer, own)
        if key not in self._slices:
            self._slices[key] = self.values[stream, layer][list(own)]
        values = self._slices[key]
        return TokenPatch(stream, layer, theirs, values if columns is None else values[:, slice(*columns)], columns)


Edits = tuple[TokenPatch, ...]


@dataclass(frozen=True, eq=False)
class Patcher:
    """Runs units of one grid over a model."""

    backend: Backend
    grid: Grid
    request: PatchRequest
    batch_size: int

    def reads(self, units: Sequence[PatchUnit], options: Sequence[str]) -> Iterator[tuple[PatchUnit, pd.DataFrame]]:
        """The reads of each unit, in order, in the columns that :mod:`probe.mechanism.patching.reads` takes."""
        n = max(1, min(UNITS, UNIT_BYTES // max(map(self._bytes, units))))
        for start in range(0, len(units), n):
            yield from self._together(units[start : start + n], options)

    def _bytes(self, unit: PatchUnit) -> int:
        widths = self.backend.facts.widths
        per_token = sum(widths[point.stream] for point in self._points)
        return 8 * len(unit.donor.ids) * per_token

    def _together(self, units: Sequence[PatchUnit], options: Sequence[str]) -> Iterator[tuple[PatchUnit, pd.DataFrame]]:
        donors = self._donors([unit.donor for unit in units], self._points)
        bases = self._donors([unit.base for unit in units], self._points)
        rows, arms, names = [], [], []
        for i, unit in enumerate(units):
            runs = {BASE_RUN: unit.base, DONOR_RUN: unit.donor}
            if unit.study_base is not None:
                runs[STUDY_BASE] = unit.study_base
            edits = self._edits(unit, donors[i], bases[i])
            for kind, run in runs.items():
                rows.append(run.row)
                own = [each for each in edits if each[0] == kind]
                arms.append([arm for _, _, arm in own])
                names.append((i, kind, [name for _, name, _ in own]))
        found: list[list[dict[str, object]]] = [[] for _ in units]
        for read in sweep(self.backend, rows, arms, batch_size=self.batch_size):
            i, kind, own_names = names[read.row]
            told = {"kind": kind} if read.arm is None else own_names[read.arm]
            found[i].append(_NOWHERE | told | _labels(read.labels, options))
        for unit, own_rows in zip(units, found, strict=True):
            of_unit = _of_unit(unit)
            yield unit, pd.DataFrame([row | of_unit for row in own_rows])

    def _donors(self, runs: Sequence[Run], points: Sequence[HookPoint]) -> list[Donor]:
        tokens = [range(len(run.ids)) for run in runs]
        read = token_reads(self.backend, [run.row for run in runs], tuple(points), tokens, batch_size=self.batch_size)
        return [Donor(values) for values in read]

    @property
    def _points(self) -> tuple[HookPoint, ...]:
        """What is read of both runs: the residual stream (paths and keys need all of it), the others where asked."""
        streams = [name for name in (ATTN_OUT, MLP_OUT, HEAD_OUT) if name in self.grid.streams]
        inner = [HookPoint(stream, block) for stream in streams for block in self.grid.blocks]
        return (*(HookPoint(RESID, point) for point in range(self.grid.n_layers + 1)), *inner)

    def _edits(self, unit: PatchUnit, donor: Donor, base: Donor) -> list[tuple[str, dict[str, object], Edits]]:
        """Every arm with the run that it edits and what its read is called."""
        pairs, read_group = unit.aligned.pairs, unit.base.layout.read_group
        turned = {name: (theirs, own) for name, (own, theirs) in pairs.items()}
        places = self.grid.places(tuple(pairs), read_group)
        made = []
        for place in places:
            made.append((BASE_RUN, _named(Arm(DENOISING, "", place)), self._at(place, pairs, donor, base)))
            if self.request.noising:
                made.append((DONOR_RUN, _named(Arm(NOISING, "", place)), self._at(place, turned, base, donor)))
        if self.request.controls:
            made += self._controls(unit)
        if self.request.paths and unit.matched:
            made += self._paths(unit, donor, base)
        return made

    def _at(self, place: Place, pairs: Mapping[str, tuple[Tokens, Tokens]], donor: Donor, receiver: Donor) -> Edits:
        """The patches of one cell. Keys and values of a block alone: the donor's states at its input, and at its output
        the receiver's own again, so that later tokens read the donor's there and nowhere else."""
        pair = pairs[place.group]
        if place.stream == KEYS_VALUES:
            own = (pair[1], pair[1])
            return donor.patch(RESID, place.layer, pair), receiver.patch(RESID, place.layer + 1, own)
        if place.stream == HEAD_OUT:
            width = self.backend.facts.widths[HEAD_OUT] // self.grid.n_heads
            return (donor.patch(HEAD_OUT, place.layer, pair, (place.head * width, (place.head + 1) * width)),)
        return (donor.patch(place.stream, place.layer, pair),)

    def _controls(self, unit: PatchUnit) -> list[tuple[str, dict[str, object], Edits]]:
        """The residual stream of other donors: what stands before the case is the same on every case, and left out."""
        donors: list[tuple[str, Run, Mapping[str, tuple[Tokens, Tokens]]]] = []
        if unit.nonsense is not None:
            donors.append((NONSENSE, unit.nonsense, unit.aligned.pairs))
        if unit.other is not None:
            names = (OTHER_CASE, OTHER_CASE_BASE)
            for name, run, aligned in zip(names, unit.other, unit.aligned_other, strict=True):
                pairs = {k: v for k, v in aligned.pairs.items() if k not in (PERSONA, ALL_TOKENS)}
                donors.append((name, run, pairs))
        points = [HookPoint(RESID, point) for point in self.grid.points]
        read = self._donors([run for _, run, _ in donors], points) if donors else []
        return [
            (BASE_RUN, _named(Arm(DENOISING, control, place)), (donor.patch(RESID, point.layer, pairs[group]),))
            for (control, _, pairs), donor in zip(donors, read, strict=True)
            for point in points
            for group in pairs
            for place in [Place(RESID, point.layer, group)]
        ]

    def _paths(self, unit: PatchUnit, donor: Donor, base: Donor) -> list[tuple[str, dict[str, object], Edits]]:
        """Runs whose last token sees some roles as in the persona's run and others as in the base's, at every layer.

        The persona's own tokens are those of the run that is edited; all tokens between them and the last one are held
        as they are in the one run or the other, whatever stands before them.
        """
        names, groups = players(unit.read), unit.base.layout.groups
        made: list[tuple[str, dict[str, object], Edits]] = []
        for chosen in coalitions(names):
            if len(chosen) in (0, len(names)):
                continue
            edits: list[TokenPatch] = []
            for role, members in PLAYERS.items():
                if role in names:
                    source = donor if role in chosen else base
                    held = tuple(sorted(token for name in members for token in groups.get(name, ())))
                    for point in range(1, self.grid.n_layers) if held else ():
                        edits.append(source.patch(RESID, point, (held, held)))
            kind = DONOR_RUN if DIRECT in chosen else BASE_RUN
            made.append((kind, {"kind": PATH, "group": coalition_name(chosen, names)}, tuple(edits)))
        return made


_NOWHERE = {"direction": "", "control": "", "stream": "", "layer": -1, "head": -1, "group": ""}


def _named(arm: Arm) -> dict[str, object]:
    place = arm.place
    return {
        "kind": PATCHED,
        "direction": arm.direction,
        "control": arm.control,
        "stream": place.stream,
        "layer": place.layer,
        "group": place.group,
        "head": place.head,
    }


def _labels(read: LabelRead, options: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {"mass": read.mass}
    return found | {f"logp_{option}": float(value) for option, value in zip(options, read.logp, strict=True)}


def _of_unit(unit: PatchUnit) -> dict[str, object]:
    case, condition = unit.case, unit.condition
    return {
        "persona": unit.persona,
        "read": unit.read,
        "case": case.id,
        "family": case.family or case.id,
        "stratum": case.stratum,
        "target": case.target,
        "instruction": condition.instruction,
        "rotation": condition.rotation,
        "placement": condition.placement,
        "seed": condition.seed,
        "prefix": condition.prefix,
    }
