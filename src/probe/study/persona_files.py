"""Personas from a list, or from roles crossed with styles. Knows persona documents; knows no task, case or template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from probe.study.checked import CLOSED, Id, Name, Text, checked, refuse_same_ids
from probe.study.located import Located, kind_of
from probe.values import Persona
from probe.values.nearest import nearest

PLAIN = "plain"
"""The name of *no style* in a crossing."""

CONTROLS: Mapping[str, Persona] = {
    "none": Persona("none", (None,)),
    "empty": Persona("empty", ("",)),
    "helpful_assistant": Persona("helpful_assistant", ("You are a helpful assistant.",)),
}
"""Personas that a crossing may name under ``also``; they have neither role nor style."""


@dataclass(frozen=True)
class _Entry:
    """A persona as written: ``text`` for one wording or ``wordings`` for several."""

    __pydantic_config__ = CLOSED

    id: Id
    text: Text | None = None
    wordings: tuple[Text | None, ...] = ()
    role: Name | None = None
    style: Name | None = None


@dataclass(frozen=True)
class _Set:
    """A list of personas that has a version."""

    __pydantic_config__ = CLOSED

    personas: tuple[Any, ...]
    version: Id | None = None


@dataclass(frozen=True)
class _Phrase:
    """The words of a role or style, with the article that goes before them where a/an by first letter is wrong."""

    __pydantic_config__ = CLOSED

    phrase: Name
    article: Name | None = None


@dataclass(frozen=True)
class _Crossing:
    """Roles x styles, each a factor of its own."""

    __pydantic_config__ = CLOSED

    roles: dict[Name, Any]
    template: Text | None = None
    templates: tuple[Text, ...] = ()
    styles: dict[Name, Any] = field(default_factory=dict)
    cross: Any = "all"
    also: tuple[Any, ...] = ()
    version: Id | None = None


PlacedPersona = tuple[Persona, str]
"""A persona and the place of its id."""

Named = Callable[[Located], Iterable[PlacedPersona] | None]
"""What an item of a list gives where it is the name of a whole set; None where it is an entry of its own."""


def read_personas(source: Located, named: Named = lambda item: None) -> tuple[Persona, ...]:
    """The personas of one document, in its order; a crossing gives its controls, then all plain roles, then each style.

    A list holds entries, crossings, and names of sets, which ``named`` looks up.

    Raises:
        StudyError: a rule is broken, or two personas share an id.
    """
    placed = list(placed_personas(source, named))
    if not placed:
        raise source.refusal("there must be at least one persona. Add one: `- {id: none, text: null}`")
    refuse_same_ids(((persona.id, place) for persona, place in placed), "persona")
    return tuple(persona for persona, _ in placed)


def placed_personas(source: Located, named: Named = lambda item: None) -> Iterator[PlacedPersona]:
    """The personas of one document with the places of their ids, before ids are compared."""
    if isinstance(source.value, list | tuple):
        for i in range(len(source.value)):
            yield from _item(source.child(i), named)
    elif isinstance(source.value, Mapping) and "personas" in source.value:
        checked(_Set, source)
        yield from placed_personas(source.child("personas"), named)
    elif isinstance(source.value, Mapping):
        yield from _crossed(source)
    else:
        raise source.refusal(
            f"personas must be a list, a mapping or `builtin:persona-paradox`, found {kind_of(source.value)}"
        )


def _item(source: Located, named: Named) -> Iterable[PlacedPersona]:
    found = named(source)
    if found is not None:
        return found
    if isinstance(source.value, Mapping) and "roles" in source.value:
        return _crossed(source)
    return [(_entry(source), source.where("id"))]


def persona_entry(persona: Persona) -> dict[str, Any]:
    """The entry that ``read_personas`` reads back as the same persona."""
    factors = {"role": persona.role, "style": persona.style}
    named = {key: value for key, value in factors.items() if value}
    return {"id": persona.id, "wordings": list(persona.wordings)} | named


def _entry(source: Located) -> Persona:
    entry = checked(_Entry, source)
    if ("text" in source.value) == ("wordings" in source.value):
        both = "both stand here" if "text" in source.value else "neither stands here"
        raise source.refusal(
            f"a persona has either `text` or `wordings`, {both}. "
            "Write `text: null` for no persona, `text: ''` for an empty system message"
        )
    wordings = (entry.text,) if "text" in source.value else entry.wordings
    if not wordings:
        raise source.refusal("`wordings` must hold at least one text. Write one, or `text: null`", "wordings")
    if None in wordings and len(wordings) > 1:
        at = wordings.index(None)
        raise source.refusal(
            "a null among several wordings is a different condition. Give it its own id", "wordings", at
        )
    return Persona(entry.id, wordings, role=entry.role or "", style=entry.style or "")


def _crossed(source: Located) -> Iterator[tuple[Persona, str]]:
    crossing = checked(_Crossing, source)
    templates = _templates(crossing, source)
    roles = {name: _phrase(source.child("roles", name)) for name in crossing.roles}
    styles = {name: _phrase(source.child("styles", name)) for name in crossing.styles}
    if not roles:
        raise source.refusal("`roles` must name at least one role. Write `nurse: nurse` under it", "roles")
    if PLAIN in styles:
        raise source.refusal(f"{PLAIN!r} means no style and cannot name one. Rename it", "styles", PLAIN, key=True)
    for i in range(len(crossing.also)):
        yield _control(source.child("also", i)), source.where("also", i)
    chosen = _chosen_styles(source, list(roles), list(styles))
    for style in (PLAIN, *styles):
        for role in roles:
            if style in chosen[role]:
                place = source.where("roles", role, key=True)
                yield _spoken(templates, role, roles[role], style, styles.get(style)), place


def _templates(crossing: _Crossing, source: Located) -> tuple[str, ...]:
    if ("template" in source.value) == ("templates" in source.value):
        raise source.refusal("a crossing has one `template`, or several as a list of `templates`. Write one of the two")
    templates = crossing.templates or (crossing.template or "",)
    loc = ("templates", 0) if crossing.templates else ("template",)
    for i, template in enumerate(templates):
        at = (*loc[:-1], i) if crossing.templates else loc
        if template.count("{persona}") != 1 or template.count("{article}") > 1:
            raise source.refusal(
                "a template holds `{persona}` exactly once and `{article}` at most once, "
                f"found {template!r}. Write 'You are {{article}} {{persona}}.'",
                *at,
            )
    return templates


def _phrase(source: Located) -> _Phrase:
    if isinstance(source.value, str):
        return checked(_Phrase, Located({"phrase": source.value}, lambda loc, key: source.where()))
    return checked(_Phrase, source)


def _control(source: Located) -> Persona:
    if not isinstance(source.value, str):
        return _entry(source)
    if source.value not in CONTROLS:
        remedy = nearest(source.value, CONTROLS, "control")
        raise source.refusal(f"{source.value!r} is no control persona. {remedy}; others are written as {{id, text}}")
    return CONTROLS[source.value]


def _chosen_styles(source: Located, roles: list[str], styles: list[str]) -> dict[str, list[str]]:
    """The styles, plain among them, in which each role appears."""
    known = [PLAIN, *styles]
    cross = source.value.get("cross", "all")
    if cross == "all":
        return dict.fromkeys(roles, known)
    if not isinstance(cross, Mapping):
        raise source.refusal(
            f"`cross` must be all or a mapping from roles to lists of styles, found {kind_of(cross)}", "cross"
        )
    chosen: dict[str, list[str]] = {role: [] for role in roles}
    for role, names in cross.items():
        if role not in chosen:
            raise source.refusal(
                f"no role is called {role!r}. {nearest(str(role), roles, 'role')}", "cross", role, key=True
            )
        if not isinstance(names, list | tuple):
            raise source.refusal(f"the styles of {role!r} must be a list, found {kind_of(names)}", "cross", role)
        for i, name in enumerate(names):
            if name not in known:
                raise source.refusal(
                    f"no style is called {name!r}. {nearest(str(name), known, 'style')}", "cross", role, i
                )
        chosen[role] = list(names)
    return chosen


def _spoken(templates: tuple[str, ...], role: str, who: _Phrase, style: str, how: _Phrase | None) -> Persona:
    words = f"{how.phrase} {who.phrase}" if how else who.phrase
    # The article goes before the first word, which is the style's where there is one.
    article = (how or who).article or ("an" if words[0].lower() in "aeiou" else "a")
    texts = tuple(_filled(template, article, words) for template in templates)
    return Persona(f"{style}_{role}" if how else role, texts, role=role, style=style if how else "")


def _filled(template: str, article: str, words: str) -> str:
    # The article first: role words may themselves hold braces, and are then left as they are.
    return template.replace("{article}", article).replace("{persona}", words)
