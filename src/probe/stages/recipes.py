"""The interventions of a study with their arrays. Knows files of directions and stores; loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from probe import organism
from probe.models import ModelShape
from probe.stages.direction_files import load_directions
from probe.stages.donors import donor_values, refuse_other_texts
from probe.store import open_store
from probe.study import Study
from probe.study.recipe_specs import GateSpec, RecipeSpec
from probe.values import (
    Direction,
    Gate,
    Intervention,
    PerCase,
    ProbeError,
    Recipe,
    Site,
    StudyError,
    canonical_json,
    steering,
)
from probe.values.nearest import nearest
from probe.values.recipes import Edit, scaled

_TOLD = (
    *("strength", "unit", "to", "at_most", "at_least", "value"),
    *("donor", "store", "read_at", "fitted_at", "during"),
)
"""What of an entry is told of its recipe."""


def with_recipes(study: Study, shape: ModelShape) -> Study:
    """The study with the arrays of its interventions read, and every one of them checked against the model's shape.

    Raises:
        StudyError: a file has no such direction, or a layer or width is not the model's.
        ProbeError: a file or store cannot be read, or the store has no such value.
    """
    arms = tuple(arm if isinstance(arm, Recipe) else _recipe(arm, study, shape) for arm in study.interventions)
    for recipe in arms:
        for edit in recipe.edits:
            _refuse_misfit(recipe, edit, shape)
    return replace(study, interventions=arms) if arms else study


def recipes_of(study: Study) -> tuple[Recipe, ...]:
    """The interventions of a study whose arrays were read."""
    return tuple(arm for arm in study.interventions if isinstance(arm, Recipe))


def interventions_told(study: Study) -> tuple[dict[str, Any], ...]:
    """What a plan says of each intervention, and how many cases lie in families that its directions were fitted on."""
    return tuple(
        recipe.told() | {"cases_fitted_on": sum((case.family or case.id) in recipe.fitted_on for case in study.cases)}
        for recipe in recipes_of(study)
    )


def optimism(study: Study) -> str:
    """One sentence where interventions act on cases of families that their directions were fitted on; else empty."""
    counts = {
        str(told["name"]): int(told["cases_fitted_on"]) for told in interventions_told(study) if told["cases_fitted_on"]
    }
    if not counts:
        return ""
    first = ", ".join(f"{name} on {n:,}" for name, n in list(counts.items())[:3])
    return (
        f"{len(counts):,} of {len(recipes_of(study)):,} interventions act on cases of families that their directions "
        f"were fitted on ({first}{', ...' if len(counts) > 3 else ''} of {len(study.cases):,} cases), where effects "
        "look larger than they are; judge them on other cases (it is recorded)"
    )


def _recipe(spec: RecipeSpec, study: Study, shape: ModelShape) -> Recipe:
    """The arrays that an entry names."""
    about: dict[str, Any] = {spec.operator: spec.path, "directions": list(spec.names)}
    about |= {key: value for key in _TOLD if (value := getattr(spec, key)) is not None}
    if spec.operator in ("swap", "patch") or (spec.operator == "ablate" and spec.value != "zero"):
        about["donor"] = spec.donor or study.base
    if spec.operator == "patch":
        return Recipe(
            spec.name, _patches(spec, study), spec.personas, about=about, source=_source(spec, study, spec.path)
        )
    found = _Directions(spec.path, spec.base or study.base, spec)
    layers = found.layers() if spec.layers == "all" else spec.layers
    if spec.layers == "all" and spec.fitted_at is not None:
        layers = tuple(range(shape.n_layers + (spec.stream == "resid")))
    used = [one for layer in layers for one in found.at(layer if spec.fitted_at is None else spec.fitted_at)]
    edits = tuple(_edit(spec, study, layer, found) for layer in layers)
    if "strength" not in about and spec.operator == "add":
        about["strength"] = 1.0
    about |= {"unit": spec.unit or "direction", "norms": [float(np.linalg.norm(one.vector)) for one in used]}
    about |= {"maker": used[0].maker, "fitted_position": used[0].site.position, **_origin(used[0])}
    return Recipe(
        spec.name,
        edits,
        spec.personas,
        frozenset().union(*(one.fitted_on for one in used)),
        about,
        _source(spec, study, spec.store) if spec.store else "",
    )


def _edit(spec: RecipeSpec, study: Study, layer: int, found: _Directions) -> Edit:
    """One layer's edit."""
    directions = found.at(layer if spec.fitted_at is None else spec.fitted_at)
    unit = spec.unit or "direction"
    gate = None if spec.gate is None else _gate(spec.gate, study, layer, spec)
    where: dict[str, Any] = {"position": spec.position, "stream": spec.stream, "gate": gate}
    if spec.operator == "add":
        strength = 1.0 if spec.strength is None else spec.strength
        made = steering(directions[0], strength, unit=unit, position=spec.position, layer=layer, gate=gate)
        return replace(made, stream=spec.stream)
    basis = _basis(directions, spec.name)
    if spec.operator in ("set", "cap"):
        sign, number = (1.0, spec.at_most) if spec.at_least is None else (-1.0, spec.at_least)
        wanted = (spec.to if spec.operator == "set" else number) or 0.0
        coordinate = sign * wanted * _norm(directions[0], unit)
        return Intervention(
            layer,
            spec.operator,
            basis=(sign * basis).astype(np.float32),
            coordinates=np.array([coordinate], np.float32),
            **where,
        )
    if spec.operator == "ablate" and spec.value == "zero":
        return Intervention(layer, "ablate", basis=basis, **where)
    assert spec.store is not None
    values = _donated(spec, study, spec.store, layer, basis)
    return PerCase(layer, "set", values, basis, **where)


def _patches(spec: RecipeSpec, study: Study) -> tuple[Edit, ...]:
    sites = open_store(spec.path, warn=False).select().frame.sites
    layers = sites.layers(spec.stream) if spec.layers == "all" else spec.layers
    return tuple(
        PerCase(
            layer,
            "patch",
            _donated(spec, study, spec.path, layer, None),
            position=spec.position,
            stream=spec.stream,
            gate=None if spec.gate is None else _gate(spec.gate, study, layer, spec),
        )
        for layer in layers
    )


def _donated(
    spec: RecipeSpec, study: Study, path: str, layer: int, basis: np.ndarray | None
) -> dict[tuple[str, int, int], np.ndarray]:
    """The donor's values for the cases of the study; by default the base persona's, at the position that is edited."""
    store = open_store(path, warn=False)
    refuse_other_texts(store, study)
    known = {case.id for case in study.cases}
    values = donor_values(
        store,
        persona=spec.donor or study.base,
        layer=layer,
        position=_site_of(spec),
        basis=basis,
        stream=spec.stream,
    )
    found = {prompted: value for prompted, value in values.items() if prompted[0] in known}
    if not found:
        raise ProbeError(
            f"{path} holds none of the cases of this study, whose values {spec.name!r} takes; capture them"
        )
    return found


def _gate(spec: GateSpec, study: Study, layer: int, edit: RecipeSpec) -> Gate:
    asked = replace(edit, direction=spec.direction, directions=None)
    found = _Directions(spec.path, spec.base or study.base, asked)
    direction = found.at(layer if spec.fitted_at is None else spec.fitted_at)[0]
    unit_vector = scaled(direction.vector, "stream")
    sign, number = (1.0, spec.above) if spec.below is None else (-1.0, spec.below)
    return Gate((sign * unit_vector).astype(np.float32), sign * (number or 0.0) * _norm(direction, spec.unit))


class _Directions:
    """The directions of a file that an entry names, by layer."""

    def __init__(self, path: str, base: str, spec: RecipeSpec) -> None:
        self._path, self._spec = path, spec
        planted = path.startswith("organism:")
        every = tuple(planted_directions(path.removeprefix("organism:"))) if planted else load_directions(path)
        self._found = [one for one in every if planted or one.base == base]
        self._base = "" if planted else f" against {base!r}"
        known = list(dict.fromkeys(one.persona for one in self._found))
        for name in spec.names:
            if name not in known:
                raise StudyError(
                    f"the intervention {spec.name!r} takes the direction {name!r}{self._base}, which {path} does not "
                    f"hold. {nearest(name, known, 'direction')}"
                )

    def layers(self) -> tuple[int, ...]:
        """The layers at which every direction of the entry is."""
        own = [{one.site.layer for one in self._found if one.persona == name} for name in self._spec.names]
        return tuple(sorted(set.intersection(*own)))

    def at(self, layer: int) -> list[Direction]:
        """The directions of the entry at a layer, in its order."""
        chosen = []
        for name in self._spec.names:
            own = [one for one in self._found if one.persona == name and one.site.layer == layer]
            if not own:
                there = sorted({one.site.layer for one in self._found if one.persona == name})
                raise StudyError(
                    f"the intervention {self._spec.name!r} needs {name!r} at layer {layer}, and {self._path} has it at "
                    f"{', '.join(map(str, there))}; name one of these in `layers`, or in `fitted_at`"
                )
            if len(own) > 1:
                raise StudyError(
                    f"{self._path} holds {len(own)} directions of {name!r}{self._base} at layer {layer}, and the "
                    f"intervention {self._spec.name!r} takes one; give it a file with one maker and one position"
                )
            chosen += own
        return chosen


def planted_directions(channel: str) -> Iterator[Direction]:
    """The planted numbers of the embedded model as directions: adding one once raises its raw number by one.

    The last is the ``decoy``, a unit vector that carries no number.
    """
    planted = organism.read_mechanism()[channel]
    site = Site(planted.layer, planted.position)
    for i, name in enumerate(planted.numbers):
        vector = planted.basis[:, i] * (planted.scale / planted.spread[i])
        yield Direction(site, vector, name, "", 0, maker="planted")
    yield Direction(site, planted.decoy, "decoy", "", 0, maker="planted")


def _basis(directions: list[Direction], name: str) -> Float[np.ndarray, "k width"]:
    """Orthonormal rows that span the directions; of one direction it is that of length 1, with its sign."""
    units = np.stack([scaled(one.vector, "stream") for one in directions])
    q, r = np.linalg.qr(units.T)
    if np.abs(np.diag(r)).min() < 1e-6:
        raise StudyError(
            f"the directions of the intervention {name!r} do not span {len(units)} dimensions; leave one out"
        )
    return np.asarray((q * np.sign(np.diag(r))).T, dtype=np.float32)


def _norm(direction: Direction, unit: str) -> float:
    """What one unit of a coordinate is, in units of the stream."""
    return float(np.linalg.norm(direction.vector)) if unit == "direction" else 1.0


def _origin(direction: Direction) -> dict[str, Any]:
    """Where a direction is from, as far as its file says."""
    told = direction.provenance
    return {f"direction_{key}": told[key] for key in ("model", "weights_sha256", "store", "made_by") if key in told}


def _source(spec: RecipeSpec, study: Study, path: str) -> str:
    """Whose values are taken, at which site of which store; its name is no matter."""
    donor = spec.donor or study.base
    return canonical_json([open_store(path, warn=False).layout.identity, donor, _site_of(spec)])


def _site_of(spec: RecipeSpec) -> str:
    """Where a donor is read: where the edit acts if that is a single token, else at the end of the prompt."""
    return spec.read_at or (spec.position if spec.position in ("prompt_end", "persona_end") else "prompt_end")


def _refuse_misfit(recipe: Recipe, edit: Edit, shape: ModelShape) -> None:
    """Raise where an edit is of a layer that the model does not have, or of another width."""
    last = shape.n_layers - (edit.stream != "resid")
    if not 0 <= edit.layer <= last:
        raise StudyError(
            f"the intervention {recipe.name!r} acts at layer {edit.layer} of {edit.stream}, and this model has 0 to "
            f"{last}; name another layer"
        )
    width = shape.heads_width if edit.stream == "head_out" else shape.d_model
    if edit.width != width:
        raise StudyError(
            f"the intervention {recipe.name!r} has arrays {edit.width} wide, and {edit.stream} of this model is "
            f"{width} wide; take directions of this very model"
        )
