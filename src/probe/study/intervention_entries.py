"""What a study says of interventions: an entry per arm, checked. Knows keys and files' names; reads no array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from probe.study.checked import checked
from probe.study.located import Located, in_memory, kind_of
from probe.study.recipe_entries import read_recipe, recipe_entry
from probe.study.recipe_specs import OPERATOR_KEYS, RecipeSpec
from probe.study.text_files import is_there
from probe.values import Persona, Recipe
from probe.values.nearest import nearest

ORGANISM = ("organism:direct", "organism:reasoned")
"""In place of a file: the planted subspace of the embedded model's channels, whose directions are its numbers."""

_NEEDS = {"set": ("to",), "cap": ("at_most", "at_least"), "swap": ("donor",), "patch": ("donor",)}
_FROM_FILES = ("base", "fitted_at")
_OF_ALL = ("name", "layers", "positions", "during", "stream", "personas", "gate")


Arm = RecipeSpec | Recipe
"""As a study file writes it, or with its arrays."""


def read_interventions(source: Located, directory: Path) -> tuple[Arm, ...]:
    """The interventions of a study: a list of entries, each an arm.

    Raises:
        StudyError: a rule is broken, or a file is not there.
    """
    if source.value is None:
        return ()
    if not isinstance(source.value, list | tuple):
        raise source.refusal(
            f"`interventions` must be a list, found {kind_of(source.value)}. Begin each entry with a dash"
        )
    found: list[Arm] = []
    for i in range(len(source.value)):
        entry = source.child(i)
        inline = isinstance(entry.value, Mapping) and "edits" in entry.value
        found.append(read_recipe(entry) if inline else _placed(_checked(entry), entry, directory))
    return tuple(found)


def check_arms(arms: Sequence[Arm], personas: tuple[Persona, ...]) -> None:
    """The rules of :func:`read_interventions` for arms that were made in Python."""
    place = in_memory({"interventions": intervention_entries(arms, arrays=False)}, "study")
    for i, arm in enumerate(arms):
        if isinstance(arm, RecipeSpec):
            _checked(place.child("interventions", i))
    refuse_unfit_arms(arms, personas, place)


def intervention_entries(arms: Sequence[Arm], *, arrays: bool = True) -> list[dict[str, Any]]:
    """The list that ``read_interventions`` reads back as the same arms; without ``arrays``, their hashes alone."""
    return [recipe_entry(arm, arrays=arrays) if isinstance(arm, Recipe) else _written(arm) for arm in arms]


def refuse_unfit_arms(arms: Sequence[Arm], personas: tuple[Persona, ...], source: Located) -> None:
    """Raise where an intervention is for a persona that the study does not have, or two of them are one."""
    known = [persona.id for persona in personas]
    first: dict[str, str] = {}
    for i, arm in enumerate(arms):
        if arm.name in (before.name for before in arms[:i]):
            raise source.refusal(
                f"two interventions are called {arm.name!r}. Rename one of them", "interventions", i, "name"
            )
        for name in arm.personas or ():
            if name not in known:
                raise source.refusal(
                    f"the intervention {arm.name!r} is for the persona {name!r}, which is not among the personas. "
                    f"{nearest(name, known, 'persona')}",
                    "interventions",
                    i,
                )
        if isinstance(arm, Recipe) and (other := first.setdefault(arm.sha256, arm.name)) != arm.name:
            raise source.refusal(
                f"the interventions {other!r} and {arm.name!r} do the same, and rows could not be told apart. "
                "Leave one out",
                "interventions",
                i,
            )


def _checked(entry: Located) -> RecipeSpec:
    """An entry with one operator, and no key that the operator has no use for."""
    spec = checked(RecipeSpec, entry)
    named = [name for name in OPERATOR_KEYS if getattr(spec, name) is not None]
    if len(named) != 1:
        raise entry.refusal(
            f"an intervention has one of the operators {', '.join(OPERATOR_KEYS)}, "
            f"found {' and '.join(named) or 'none'}. Write an entry for each"
        )
    operator = named[0]
    taken = {*_OF_ALL, operator, *OPERATOR_KEYS[operator], *(_FROM_FILES if operator != "patch" else ())}
    for key in entry.value:
        if key not in taken:
            own = ", ".join(OPERATOR_KEYS[operator])
            raise entry.refusal(
                f"`{key}` means nothing to `{operator}`, which takes {own}. Leave it out", key, key=True
            )
    _refuse_incomplete(spec, entry)
    if spec.during == "prefill" and spec.position == "response":
        raise entry.refusal("generated tokens are not there during prefill. Choose `during: decoding`", "during")
    if spec.during == "decoding" and spec.position != "response":
        raise entry.refusal(
            f"{spec.position} lies in the prompt, and nothing of it is computed during decoding. "
            "Choose `positions: newest`, or `during: prefill`",
            "during",
        )
    return spec


def _refuse_incomplete(spec: RecipeSpec, entry: Located) -> None:
    operator = spec.operator
    if operator != "patch" and (spec.direction is None) == (spec.directions is None):
        what = "`direction` or `directions`" if "directions" in OPERATOR_KEYS[operator] else "`direction`"
        raise entry.refusal(f"`{operator}` names what it takes from the file by {what}. Add it", operator)
    needed = _NEEDS.get(operator, ())
    if needed and sum(getattr(spec, key) is not None for key in needed) != 1:
        raise entry.refusal(f"`{operator}` needs {' or '.join(f'`{key}`' for key in needed)}. Write one", operator)
    needs_store = operator == "swap" or (operator == "ablate" and spec.value != "zero")
    if needs_store and spec.store is None:
        zero = ", or write `value: zero`" if operator == "ablate" else ""
        raise entry.refusal(f"`{operator}` reads the value of the same case in a `store`. Add it{zero}", operator)
    if operator == "ablate" and spec.value == "zero" and (spec.store or spec.donor or spec.read_at):
        raise entry.refusal("with `value: zero` nothing is read from a store. Leave `store` out", "value")
    if spec.unit == "residual" and operator != "add":
        raise entry.refusal(f"`{operator}` has no unit residual. Write direction or stream", "unit")
    if operator == "patch" and spec.position not in ("prompt_end", "persona_end"):
        raise entry.refusal(
            f"a store holds residuals of single tokens, and {spec.position} is none. Write prompt_end or persona_end",
            "positions" if spec.positions else "patch",
        )
    if spec.gate is not None:
        if (spec.gate.above is None) == (spec.gate.below is None):
            raise entry.refusal("a gate is open `above` or `below` a number. Write one of them", "gate")
        if spec.gate.unit == "residual":
            raise entry.refusal("a gate has no unit residual. Write direction or stream", "gate", "unit")


def _placed(spec: RecipeSpec, entry: Located, directory: Path) -> RecipeSpec:
    """The entry with its files where they are: beside the study file, else as written."""
    changes: dict[str, Any] = {}
    for key in ("add", "ablate", "set", "cap", "swap"):
        if (name := getattr(spec, key)) is not None:
            changes[key] = _file(name, entry, directory, key)
    for key in ("patch", "store"):
        if (name := getattr(spec, key)) is not None:
            beside = directory / name
            changes[key] = str(beside) if is_there(beside.is_dir) else name
    if spec.gate is not None:
        changes["gate"] = replace(spec.gate, path=_file(spec.gate.path, entry, directory, "gate", "path"))
    return replace(spec, **changes)


def _file(name: str, entry: Located, directory: Path, *at: str) -> str:
    if name.startswith("organism:"):
        if name not in ORGANISM:
            raise entry.refusal(f"{name!r} is not planted. {nearest(name, ORGANISM, 'channel')}", *at)
        return name
    for path in (directory / name, Path(name)):
        if is_there(path.is_file):
            return str(path)
    raise entry.refusal(
        f"there is no file {name!r}, beside the study file or in the working directory. `probe directions` writes such "
        "files under figures/",
        *at,
    )


def _written(spec: RecipeSpec) -> dict[str, Any]:
    """What differs from the defaults, in plain values."""
    found: dict[str, Any] = {}
    for known in fields(spec):
        value = getattr(spec, known.name)
        if known.name == "gate" and value is not None:
            value = {key: one for key, one in vars(value).items() if one is not None}
        if known.name in ("name", "layers") or value != known.default:
            found[known.name] = list(value) if isinstance(value, tuple) else value
    return found
