"""The planted mechanism as arrays: where and how the packaged checkpoint holds a persona's numbers.

Knows the published arrays and what they mean; knows no model and no case.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

FILE = Path(__file__).parent / "checkpoint" / "mechanism.npz"


@dataclass(frozen=True, eq=False)
class PlantedChannel:
    """One channel: at residual point ``layer`` of ``position``, span(``basis``) holds the persona's raw ``numbers``.

    The columns of ``basis`` (Q) are orthonormal; the coordinate of a number along its column is
    ``(number - centre) / spread`` times ``scale`` (in units of the residual stream); the numbers are those of
    :func:`probe.organism.plan.numbers`. ``decoy`` is a unit vector orthogonal to both channels' Q: along it lies, for a
    medical role, ``decoy_share`` of the residual's norm, and else as much below zero, and it moves nothing.
    """

    name: str
    layer: int
    position: str
    numbers: tuple[str, ...]
    basis: Float[np.ndarray, "d_model number"]
    centre: Float[np.ndarray, " number"]
    spread: Float[np.ndarray, " number"]
    scale: float
    decoy: Float[np.ndarray, " d_model"]
    decoy_share: float

    def read(self, resid: Float[np.ndarray, "*rows d_model"]) -> Float[np.ndarray, "*rows number"]:
        """The raw numbers that residuals hold."""
        return np.asarray(resid @ self.basis / self.scale * self.spread + self.centre)

    def written(
        self, resid: Float[np.ndarray, "*rows d_model"], numbers: Float[np.ndarray, "*rows number"]
    ) -> Float[np.ndarray, "*rows d_model"]:
        """The residuals with these numbers in span(Q) and their complement as it was.

        With what another run's residuals ``read`` this is the interchange of the planted subspace (Geiger et al. 2022);
        with chosen numbers it is a dose whose effect the plan states.
        """
        code = self.scale * (numbers - self.centre) / self.spread
        return np.asarray(resid + (code - resid @ self.basis) @ self.basis.T)


@lru_cache(maxsize=2)
def read_mechanism(path: Path = FILE) -> dict[str, PlantedChannel]:
    """The planted channels ``direct`` (at ``prompt_end``) and ``reasoned`` (at ``answer``) of a checkpoint."""
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        columns = {name: arrays[name].astype(np.float64) for name in arrays.files if name != "about"}
    return {
        name: PlantedChannel(
            name=name,
            layer=about["layer"],
            position=entry["position"],
            numbers=tuple(entry["numbers"]),
            basis=columns[f"{name}.basis"],
            centre=columns[f"{name}.centre"],
            spread=columns[f"{name}.spread"],
            scale=about["scale"],
            decoy=columns[f"{name}.decoy"],
            decoy_share=about["decoy_share"],
        )
        for name, entry in about["channels"].items()
    }
