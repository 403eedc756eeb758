"""Directions that are added, and their doses on a model; what personas share is measured once. Runs sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from probe.capture import PassInput
from probe.mechanism.steering import controls
from probe.mechanism.steering.dose import GRID, DoseCurve, EqualDose
from probe.models.points import residual_points
from probe.models.protocol import Backend
from probe.stages.steer_kept import KeptReads
from probe.stages.steer_reads import Edits, Reads, SweepOrder
from probe.stages.steer_scene import Prompted, Scene
from probe.stages.steer_sweeps import read_sweep
from probe.values import Case, Intervention, ProbeError

N_SPLITS = 9
"""Random splits of base cases."""


@dataclass(frozen=True, eq=False)
class Push:
    """A direction that an arm adds: a unit vector at a layer, the residual norm there, which strengths are units of,
    and the direction's own norm (NaN for one that was drawn)."""

    kind: str
    name: str
    layer: int
    unit: Float[np.ndarray, " width"]
    scale: float
    norm: float = np.nan

    def edit(self, strength: float, position: str) -> Intervention:
        """The intervention that adds it ``strength`` residual norms long."""
        vector = (strength * self.scale * self.unit).astype(np.float32)
        return Intervention(self.layer, "add", vector, position=position)

    def own(self, strength: float) -> float:
        """A strength in units of the direction's own norm."""
        return strength * self.scale / self.norm


@dataclass(frozen=True, eq=False)
class Dosed:
    """A direction with the strength at which it has the dose of a persona's prompt."""

    push: Push
    dose: EqualDose


@dataclass(eq=False)
class Bench:
    """A model with the rows of a scene; what was measured of shared directions is there for the next persona, and what
    ``kept`` holds for the next run."""

    scene: Scene
    backend: Backend
    kept: KeptReads | None = None
    _rows: dict[tuple[Prompted, tuple[str, ...]], list[PassInput]] = field(default_factory=dict)
    _banks: dict[int, tuple[list[Push], list[DoseCurve], tuple[str, ...]]] = field(default_factory=dict)

    @property
    def base(self) -> Prompted:
        """The unprompted run."""
        return Prompted(self.scene.base)

    @property
    def acts_at(self) -> str:
        """Where an edit acts while labels are read."""
        return "prompt_end" if self.scene.request.site == "prompt_end" else "response"

    def rows(self, prompted: Prompted, cases: Sequence[Case]) -> list[PassInput]:
        """The rows of a prompt on some cases."""
        key = (prompted, tuple(case.id for case in cases))
        if key not in self._rows:
            self._rows[key] = self.scene.rows(prompted, cases)
        return self._rows[key]

    def read(
        self,
        prompted: Prompted,
        cases: Sequence[Case],
        arms: Sequence[Edits] | Sequence[Sequence[Edits]] = (),
        *,
        against: Sequence[Prompted] = (),
        layers: tuple[int, ...] = (),
        per_case: bool = False,
        what: str = "",
    ) -> Reads:
        """Labels under every arm; the arms are the same for all cases, or ``per_case`` a list for each."""
        rows, same = self.rows(prompted, cases), list(arms)
        order = SweepOrder(
            rows,
            same if per_case else [same for _ in rows],  # type: ignore[arg-type,misc]  # by per_case
            [self.rows(one, cases) for one in against],
            residual_points(layers),
        )
        return self.sweep(order, what)

    def sweep(self, order: SweepOrder, what: str = "") -> Reads:
        """The reads of an order, kept where the bench keeps what it reads."""
        size = self.scene.resolved.batch_size
        return read_sweep(self.backend, order, kept=self.kept, batch_size=size, what=what)

    def curves(self, pushes: Sequence[Push], what: str) -> list[DoseCurve]:
        """The doses of directions at the strengths that every one is tried at first."""
        found = [DoseCurve() for _ in pushes]
        asked = [(i, strength) for i in range(len(pushes)) for strength in GRID]
        for (i, strength), dose in zip(asked, self.doses(pushes, asked, what), strict=True):
            found[i] = found[i].with_measured(strength, dose)
        return found

    def doses(self, pushes: Sequence[Push], asked: Sequence[tuple[int, float]], what: str = "doses") -> list[float]:
        """Mean divergence over labels and other, on the cases that settle strengths."""
        arms: list[Edits] = [(pushes[i].edit(strength, self.acts_at),) for i, strength in asked]
        return [float(one) for one in self.read(self.base, self.scene.settling(), arms, what=what).dose[1:].mean(1)]

    def scale(self, layer: int) -> float:
        """Mean residual norm of the base at a layer, over the training families."""
        return float(np.linalg.norm(self.scene.base_rows(layer)[0], axis=1).mean())

    def own(self, persona: str, layer: int, kind: str = "steered") -> Push:
        """A persona's own direction as a push.

        Raises:
            ProbeError: it is undefined there, or has no length.
        """
        vector = self.scene.direction(persona, layer).vector.astype(np.float64)
        norm = float(np.linalg.norm(vector))
        if not 0 < norm < np.inf:
            raise ProbeError(
                f"a direction is added as a unit vector, and that of {persona!r} at residual point {layer} has norm "
                f"{norm:.3g}: its runs do not differ from {self.scene.base!r} there; choose other layers"
            )
        name = "steered" if kind == "steered" else persona
        return Push(kind, name, layer, vector / norm, self.scale(layer), norm)

    def bank(self, layer: int) -> tuple[list[Push], list[DoseCurve], tuple[str, ...]]:
        """The directions at a layer that are no persona's own, with their dose curves, and why a kind is not among
        them: measured once for all personas.

        The label contrast stands there with both signs.
        """
        if layer not in self._banks:
            request, (x, family, score) = self.scene.request, self.scene.base_rows(layer)
            rng, scale = np.random.default_rng([request.seed, layer]), self.scale(layer)
            pushes, refused = [], []
            try:
                for kind, many in controls.drawn(x, family, n_random=request.n_random, n_splits=N_SPLITS, rng=rng):
                    pushes += [Push(kind, f"{kind} {i}", layer, unit, scale) for i, unit in enumerate(many)]
            except ProbeError as error:
                refused.append(f"random controls after the first {len(pushes)}: {error}")
            try:
                unit = controls.label_contrast(x, score)
                for name, sign in (("most", 1.0), ("least", -1.0)):
                    pushes.append(Push("label_contrast", f"towards the {name} urgent label", layer, sign * unit, scale))
            except ProbeError as error:
                refused.append(f"label contrast: {error}")
            self._banks[layer] = (pushes, self.curves(pushes, f"controls at layer {layer}"), tuple(refused))
        return self._banks[layer]


def ablation(push: Push, value: float, position: str) -> Intervention:
    """The component along a direction set to the value that the base has for the same case: h' = h - v (v.h - m0)."""
    basis = push.unit[None].astype(np.float32)
    return Intervention(
        push.layer, "set", basis=basis, coordinates=np.array([value], dtype=np.float32), position=position
    )
