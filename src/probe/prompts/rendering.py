"""Prompts from cells. Knows chat templates and token positions; knows nothing of models or activations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from probe.prompts.reasoning import answer_start
from probe.prompts.structure import Encoded, Outline, Structure
from probe.values import Case, Condition, ModelError, ProbeError, RowRefused, Task, sha256_of

BUILDER_VERSION = "1"
"""Changes when the same persona, case and condition would render to another text."""

_PERSONA_MARK = "PERSONAMARKq7Zx"
_CASE_MARK = "CASEMARKq7Zx"


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt with the places that sites read.

    ``persona_span`` and ``case_span`` are ``[start, end)`` in characters of ``text``, None where the text does not
    stand there verbatim. ``persona_tokens`` is the ``[start, end)`` of the tokens that overlap the persona's text,
    ``case_tokens`` that of the tokens wholly inside the case's text, ``user_tokens`` that of those that overlap the
    user's text (instruction and case); each is None where absent. ``literal`` says that structural tokens which
    persona or case name were read as the plain text they are.
    """

    text: str
    token_ids: tuple[int, ...]
    persona_span: tuple[int, int] | None
    case_span: tuple[int, int] | None
    persona_tokens: tuple[int, int] | None
    case_tokens: tuple[int, int] | None
    literal: bool = False
    user_tokens: tuple[int, int] | None = None

    @property
    def persona_end(self) -> int | None:
        """The index of the last token that overlaps the persona's text."""
        return None if self.persona_tokens is None else self.persona_tokens[1] - 1

    @property
    def prompt_sha(self) -> str:
        """sha256 of the rendered text; read literally, it is another prompt."""
        return text_sha(f"literal\0{self.text}" if self.literal else self.text)

    @property
    def tokens_sha(self) -> str:
        """sha256 of the token ids."""
        return sha256_of(list(self.token_ids))


def text_sha(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ChatTemplate:
    """The chat template of a tokenizer, and whether it has a place for a system message.

    ``ending`` is what it writes after the user's text, up to where the answer begins.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.ending = self._ending()
        self.has_system_role = self._shows_a_system_message()

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages as one text that ends where the assistant's answer begins."""
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _ending(self) -> str:
        try:
            return self.render([{"role": "user", "content": _CASE_MARK}]).rpartition(_CASE_MARK)[2]
        except TemplateError as error:
            raise ModelError(f"the chat template does not render a user's message: {error}; mend it") from error

    def _shows_a_system_message(self) -> bool:
        try:
            text = self.render([{"role": "system", "content": _PERSONA_MARK}, {"role": "user", "content": _CASE_MARK}])
        except TemplateError:  # templates without the role raise an exception of their own making
            return False
        return _PERSONA_MARK in text


class PromptBuilder:
    """Renders every cell of a task with one template, so that arms differ in the persona's text only.

    Contents (persona, instruction, options, case) that name a structural token of the tokenizer (``<|im_end|>``) are
    refused; with ``literal`` they are read as the plain text they are, as a model would be shown them through an API.
    With ``tags`` those that are not special (``<think>``) are read as the tokens they are.
    """

    def __init__(self, tokenizer: Any, task: Task, *, literal: bool = False, tags: bool = False) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.template = ChatTemplate(tokenizer)
        self.literal = literal
        self.tags = tags
        self._structure = Structure(tokenizer)
        self._frames: dict[tuple[object, ...], str] = {}
        self._outlines: dict[tuple[str | None, str], Outline] = {}

    def opens_reasoning(self, condition: Condition) -> bool:
        """Whether the answer begins inside reasoning, which the template (or the forced prefix) has opened."""
        return answer_start(self.template.ending + condition.prefix, self.task.parser.reasoning) is None

    def structural_tokens(self, prompt: Prompt, persona_text: str | None, condition: Condition) -> tuple[int, int]:
        """How many structural tokens a prompt has, and how many the chat template writes (a prefix may add others)."""
        own = len(self._outline(persona_text, condition).structure)
        return self._structure.count(prompt.token_ids), own

    def resolve_placement(self, wanted: str) -> str:
        """``auto`` becomes ``system`` where the template has that role, else ``user``.

        Raises:
            ModelError: ``system`` is asked of a template that has no system role.
        """
        if wanted == "system" and not self.template.has_system_role:
            raise ModelError(
                "conditions.placement is 'system' but this model's chat template has no system role; "
                "use 'auto' or 'user' (the persona then stands first in the user turn)"
            )
        if wanted != "auto":
            return wanted
        return "system" if self.template.has_system_role else "user"

    def build(self, persona_text: str | None, case: Case, condition: Condition) -> Prompt:
        """The prompt of one cell.

        Raises:
            RowRefused: a content carries text that this tokenizer reads as a structural token.
            ProbeError: an empty system message is asked of a template without a system role.
        """
        if persona_text == "" and condition.placement == "user":
            raise ProbeError(
                "an empty system message needs a system role, and here the persona stands in the user turn; "
                "drop that persona for this model, or use 'no persona' (text: null)"
            )
        rendered = self._render(persona_text, case.input, case, condition)
        marked = self._frame(persona_text, case, condition)
        persona_span, case_span = _spans(rendered, marked, persona_text, case.input)
        encoded = self._structure.encode(rendered)
        prefixed = self._structure.encode(rendered + condition.prefix) if condition.prefix else encoded
        outline = self._outline(persona_text, condition)
        literal = not self._reads_as_meant(encoded, outline)
        if literal:
            encoded, prefixed = self._literally(rendered, persona_text, case, condition)
        return Prompt(
            text=rendered + condition.prefix,
            token_ids=prefixed.ids,
            persona_span=persona_span,
            case_span=case_span,
            persona_tokens=_overlapping(encoded.offsets, persona_span),
            case_tokens=_wholly_inside(encoded.offsets, case_span),
            literal=literal,
            user_tokens=_overlapping(encoded.offsets, self._user_span(rendered, persona_text, case, condition)),
        )

    def _user_span(
        self, rendered: str, persona_text: str | None, case: Case, condition: Condition
    ) -> tuple[int, int] | None:
        """Where instruction and case stand, in characters: the user's turn without a persona that is placed in it."""
        system, user = self._contents(persona_text, case.input, case, condition)
        own = self._user_text(case.input, case, condition)
        before, _, after = self._outline(persona_text, condition).text.partition(_CASE_MARK)
        before = before.replace(_PERSONA_MARK, system or "")
        if rendered != before + user + after:  # the template trims texts, say
            return _only_occurrence(rendered, own)
        end = len(before) + len(user)
        return end - len(own), end

    def _render(self, persona_text: str | None, case_text: str, case: Case, condition: Condition) -> str:
        system, user = self._contents(persona_text, case_text, case, condition)
        return self._message(system, user)

    def _contents(
        self, persona_text: str | None, case_text: str, case: Case, condition: Condition
    ) -> tuple[str | None, str]:
        """What stands in the system turn (None: there is none) and in the user turn."""
        user = self._user_text(case_text, case, condition)
        if persona_text is not None and condition.placement == "user":
            return None, f"{persona_text}\n\n{user}"
        return persona_text, user

    def _message(self, system: str | None, user: str) -> str:
        first = [] if system is None else [{"role": "system", "content": system}]
        return self.template.render([*first, {"role": "user", "content": user}])

    def _user_text(self, case_text: str, case: Case, condition: Condition) -> str:
        task = self.task
        texts = case.choices or tuple(option.text for option in task.options)
        letters = task.letters_by_option(condition.rotation)
        # Read in the order of the task's letters, whatever option each letter means.
        shown = sorted(zip(letters, texts, strict=True), key=lambda pair: task.letters.index(pair[0]))
        options = task.option_separator.join(
            task.option_format.format(letter=letter, text=text) for letter, text in shown
        )
        before, after = task.instructions[condition.instruction].split("{case}")
        return before.replace("{options}", options) + case_text + after.replace("{options}", options)

    def _frame(self, persona_text: str | None, case: Case, condition: Condition) -> str:
        """The prompt with marks for persona and case."""
        kind = _PERSONA_MARK if persona_text else persona_text
        key = (kind, case.choices, condition)
        if key not in self._frames:
            marked = self._render(kind, _CASE_MARK, case, condition)
            for mark, words in ((_CASE_MARK, "user's text"), (kind, "persona's text")):
                if mark and mark not in marked:
                    raise ModelError(
                        f"the chat template shows nothing of the {words}; it may expect another form of message: "
                        "give model.chat_template a template that shows it"
                    )
            self._frames[key] = marked
        return self._frames[key]

    def _outline(self, persona_text: str | None, condition: Condition) -> Outline:
        """The template alone, with marks for the whole content of each turn."""
        system = None if condition.placement == "user" else persona_text and _PERSONA_MARK
        key = (system, condition.placement)
        if key not in self._outlines:
            self._outlines[key] = self._structure.outline(self._message(system, _CASE_MARK))
        return self._outlines[key]

    def _reads_as_meant(self, encoded: Encoded, outline: Outline) -> bool:
        """Whether the contents name no structural token, or none but tags where these are wanted."""
        if self._structure.count(encoded.ids) == len(outline.structure):
            return True
        own = self._structure.count_special(outline.encoded.ids)
        return self.tags and self._structure.count_special(encoded.ids) == own

    def _literally(
        self, rendered: str, persona_text: str | None, case: Case, condition: Condition
    ) -> tuple[Encoded, Encoded]:
        """Tokens of a prompt whose contents name structural tokens, without and with the answer's prefix.

        Raises:
            RowRefused: that was not asked for, or this tokenizer and template do not allow it.
        """
        outline = self._outline(persona_text, condition)
        system, user = self._contents(persona_text, case.input, case, condition)
        contents = ({_PERSONA_MARK: system} if system else {}) | {_CASE_MARK: user}
        if not self.literal:
            raise self._named(rendered, persona_text, case, "rewrite the text, or set capture.special_tokens: literal")
        encoded = self._structure.encode_literally(outline, contents)
        prefixed = self._structure.encode_literally(outline, contents, condition.prefix)
        whole = outline.text.replace(_PERSONA_MARK, system or "").replace(_CASE_MARK, user)
        if encoded is None or prefixed is None or whole != rendered:
            raise self._named(
                rendered, persona_text, case, "this tokenizer or template cannot show it as plain text; rewrite it"
            )
        if self._structure.count(encoded.ids) != len(outline.structure):
            raise self._named(
                rendered, persona_text, case, "this tokenizer has no plain way to write it; rewrite the text"
            )
        return encoded, prefixed

    def _named(self, rendered: str, persona_text: str | None, case: Case, remedy: str) -> RowRefused:
        texts = {"persona": persona_text or "", "case": case.input, "case's choices": "\n".join(case.choices or ())}
        found = [(words, self._structure.first_in(text, special=self.tags)) for words, text in texts.items()]
        places = [
            f"the {words} hold{'' if words[-1] == 's' else 's'} {hit[0]!r} at character {hit[1] + 1}"
            for words, hit in found
            if hit
        ]
        return RowRefused(
            "SpecialTokens",
            f"{' and '.join(places) or 'the task holds a structural token'}, which this tokenizer would read as the "
            f"end or the beginning of a turn; {remedy}",
            text_sha(rendered),
        )


def _spans(
    rendered: str, marked: str, persona_text: str | None, case_text: str
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Where persona and case stand, from a rendering with marks in their places."""
    head, _, tail = marked.partition(_CASE_MARK)
    persona_span = None
    if persona_text and _PERSONA_MARK in head:
        before, _, between = head.partition(_PERSONA_MARK)
        head = before + persona_text + between
        persona_span = (len(before), len(before) + len(persona_text))
    if rendered == head + case_text + tail:
        return persona_span, (len(head), len(head) + len(case_text))
    # The template changes texts (it trims them, say): a span holds only where the text occurs exactly once.
    return _only_occurrence(rendered, persona_text), _only_occurrence(rendered, case_text)


def _only_occurrence(rendered: str, text: str | None) -> tuple[int, int] | None:
    wanted = (text or "").strip()
    if not wanted or rendered.count(wanted) != 1:
        return None
    start = rendered.index(wanted)
    return start, start + len(wanted)


def _overlapping(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None) -> tuple[int, int] | None:
    if span is None:
        return None
    hits = [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
    return (hits[0], hits[-1] + 1) if hits else None


def _wholly_inside(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None) -> tuple[int, int] | None:
    if span is None:
        return None
    hits = [i for i, (start, end) in enumerate(offsets) if span[0] <= start and end <= span[1] and start < end]
    return (hits[0], hits[-1] + 1) if hits else None
