"""A study file that names several models, as one study for each. Knows the key `model`; loads no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from probe.study.located import Loc, Located, Place, kind_of


def names_many(document: Located) -> bool:
    """Whether `model` is a list."""
    return isinstance(document.value, Mapping) and isinstance(document.value.get("model"), list)


def one_by_one(document: Located) -> tuple[Located, ...]:
    """The document once for every entry of the list `model`, its name followed by that of the model.

    An entry is what `model` is otherwise, or the id alone. Messages keep the places of the file.

    Raises:
        StudyError: the list is empty, or an entry is neither text nor a mapping with an id.
    """
    entries = document.value["model"]
    if not entries:
        raise document.refusal("`model` is an empty list. Name a model, or several", "model")
    names: list[str] = []
    found = []
    for i, entry in enumerate(entries):
        model = {"id": entry} if isinstance(entry, str) else entry
        if not isinstance(model, Mapping) or not isinstance(model.get("id"), str):
            raise document.refusal(
                f"a model is {{id: ...}} or its id, found {kind_of(entry)}. Write both hub ids and folders as text",
                "model",
                i,
            )
        name = _slug(str(model["id"]), model.get("revision"))
        names.append(name)
        again = names.count(name)
        own = f"{document.value.get('name')}.{name}" + (f"-{again}" if again > 1 else "")
        value = {**document.value, "model": dict(model), "name": own}
        found.append(replace(document, value=value, place=_places(document, i)))
    return tuple(found)


def _places(document: Located, i: int) -> Place:
    def place(loc: Loc, key: bool) -> str:
        if loc[:1] != ("model",):
            return document.place(loc, key)
        within = () if isinstance(document.value["model"][i], str) else loc[1:]
        return document.place(("model", i, *within), key)

    return place


def _slug(name: str, revision: object) -> str:
    """The last part of an id (and the revision) as a part of a folder's name, without a dot."""
    last = name.rstrip("/").rpartition("/")[2] or name
    text = last if revision is None else f"{last}@{revision}"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "model"
