"""Prompts from cells. Knows chat templates and token positions; knows nothing of models or activations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from probe.values import Case, Condition, ModelError, ProbeError, RowRefused, Task, sha256_of

BUILDER_VERSION = "1"
"""Changes when the same persona, case and condition would render to another text."""

_PERSONA_MARK = "PERSONAMARKq7Zx"
_CASE_MARK = "CASEMARKq7Zx"
_STRUCTURAL = re.compile(r"^(<.+>|\[[A-Z_]+\])$", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt with the places that sites read.

    ``persona_span`` and ``case_span`` are ``[start, end)`` in characters of ``text``, None where the text does not
    stand there verbatim. ``persona_end`` is the index of the last token that overlaps the persona's text and
    ``case_tokens`` the ``[start, end)`` of the tokens wholly inside the case's text; both are None where absent.
    """

    text: str
    token_ids: tuple[int, ...]
    persona_span: tuple[int, int] | None
    case_span: tuple[int, int] | None
    persona_end: int | None
    case_tokens: tuple[int, int] | None

    @property
    def prompt_sha(self) -> str:
        """sha256 of the rendered text."""
        return text_sha(self.text)

    @property
    def tokens_sha(self) -> str:
        """sha256 of the token ids."""
        return sha256_of(list(self.token_ids))


def text_sha(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ChatTemplate:
    """The chat template of a tokenizer, and whether it has a place for a system message."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._refuse_a_broken_template()
        self.has_system_role = self._shows_a_system_message()

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages as one text that ends where the assistant's answer begins."""
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _refuse_a_broken_template(self) -> None:
        try:
            self.render([{"role": "user", "content": _CASE_MARK}])
        except TemplateError as error:
            raise ModelError(f"the chat template does not render a user's message: {error}; mend it") from error

    def _shows_a_system_message(self) -> bool:
        try:
            text = self.render([{"role": "system", "content": _PERSONA_MARK}, {"role": "user", "content": _CASE_MARK}])
        except TemplateError:  # templates without the role raise an exception of their own making
            return False
        return _PERSONA_MARK in text


class PromptBuilder:
    """Renders every cell of a task with one template, so that arms differ in the persona's text only."""

    def __init__(self, tokenizer: Any, task: Task) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.template = ChatTemplate(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._structural = {
            token_id: token.content
            for token_id, token in added.items()
            if (token.special or _STRUCTURAL.match(token.content)) and token_id != tokenizer.unk_token_id
        }
        self._frames: dict[tuple[object, ...], tuple[str, int]] = {}

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
            RowRefused: the persona or the case carries text that this tokenizer reads as a structural token.
            ProbeError: an empty system message is asked of a template without a system role.
        """
        if persona_text == "" and condition.placement == "user":
            raise ProbeError(
                "an empty system message needs a system role, and here the persona stands in the user turn; "
                "drop that persona for this model, or use 'no persona' (text: null)"
            )
        rendered = self._render(persona_text, case.input, case, condition)
        marked, structural = self._frame(persona_text, case, condition)
        persona_span, case_span = _spans(rendered, marked, persona_text, case.input)
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = tuple(encoding["input_ids"]), encoding["offset_mapping"]
        if (found := sum(token in self._structural for token in ids)) != structural:
            raise self._structural_text(rendered, case, found, structural)
        prefixed = self._with_prefix(rendered, ids, condition.prefix)
        return Prompt(
            text=prefixed[0],
            token_ids=prefixed[1],
            persona_span=persona_span,
            case_span=case_span,
            persona_end=_last_overlapping(offsets, persona_span),
            case_tokens=_wholly_inside(offsets, case_span),
        )

    def _render(self, persona_text: str | None, case_text: str, case: Case, condition: Condition) -> str:
        user = self._user_text(case_text, case, condition)
        if persona_text is None:
            return self.template.render([{"role": "user", "content": user}])
        if condition.placement == "user":
            return self.template.render([{"role": "user", "content": f"{persona_text}\n\n{user}"}])
        return self.template.render([{"role": "system", "content": persona_text}, {"role": "user", "content": user}])

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

    def _with_prefix(self, text: str, ids: tuple[int, ...], prefix: str) -> tuple[str, tuple[int, ...]]:
        if not prefix:
            return text, ids
        whole = tuple(self.tokenizer(text + prefix, add_special_tokens=False)["input_ids"])
        return text + prefix, whole

    def _frame(self, persona_text: str | None, case: Case, condition: Condition) -> tuple[str, int]:
        """The prompt with marks for persona and case, and how many structural tokens the template itself makes."""
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
            ids = self.tokenizer(marked, add_special_tokens=False)["input_ids"]
            self._frames[key] = marked, sum(token in self._structural for token in ids)
        return self._frames[key]

    def _structural_text(self, rendered: str, case: Case, found: int, expected: int) -> RowRefused:
        inside = next((text for text in self._structural.values() if text in case.input), None)
        where = f"the case holds {inside!r}" if inside else "the persona's or the case's text holds one"
        return RowRefused(
            "SpecialTokens",
            f"{found} structural tokens where the chat template itself makes {expected}: {where}, "
            "which this tokenizer would read as the end of a turn; rewrite the text",
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


def _last_overlapping(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None) -> int | None:
    if span is None:
        return None
    hits = [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
    return hits[-1] if hits else None


def _wholly_inside(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None) -> tuple[int, int] | None:
    if span is None:
        return None
    hits = [i for i, (start, end) in enumerate(offsets) if span[0] <= start and end <= span[1] and start < end]
    return (hits[0], hits[-1] + 1) if hits else None
