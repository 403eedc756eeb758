"""What stands before a label at each answer site, in tokens. Knows a tokenizer and texts; knows no model or logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from probe.prompts.labels import TOKEN, LabelTokens, continuation, label_tokens
from probe.prompts.reasoning import answer_start
from probe.prompts.rendering import Prompt, PromptBuilder
from probe.values import AbsentSite, Condition, LabelError, Reasoning

_TAIL = 48
"""Prompts that end in the same characters read their labels from the same tokens."""

_BREAK = "\n\n"
"""What stands before the forced text where its label tokens are looked up before any reasoning is written."""


@dataclass(frozen=True)
class Reopening:
    """Where an answer is taken up again: after its first ``n_kept`` tokens, with ``token_ids`` fed next."""

    n_kept: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ForcedText:
    """A forced beginning of the answer after one prompt: its tokens there, and those of the labels after it."""

    token_ids: tuple[int, ...]
    labels: LabelTokens


@dataclass(frozen=True)
class SiteReads:
    """What the answer sites of one prompt read; None where a site was not asked for.

    ``labels`` are read at the prompt's end, ``forced`` after a forced text there, ``reopener`` after the reasoning that
    the model will have written. ``reasoning_open``: the prompt itself ends inside reasoning, which its template opened.
    """

    labels: LabelTokens
    forced: ForcedText | None = None
    reopener: Reopener | None = None
    reasoning_open: bool = False


class Reopener:
    """Finds where an answer's reasoning is closed, and the tokens of the forced text there.

    What is kept is the answer up to its last close, as the parser sees it, with the white space and the special tokens
    that the model wrote behind it. ``opened``: the prompt had opened the reasoning, so that no close means not closed.
    A forced text that begins by closing the reasoning is fed without that close. ``labels`` are read after it.
    """

    def __init__(
        self,
        tokenizer: Any,
        forced: str,
        letters: Sequence[str],
        *,
        reasoning: Sequence[Reasoning] = (),
        opened: bool = False,
        score: str = TOKEN,
    ) -> None:
        self._tokenizer = tokenizer
        self._reasoning = tuple(reasoning)
        self._opened = opened
        self.forced = forced[answer_start(forced, reasoning) or 0 :].lstrip() or forced
        self.labels = label_tokens(tokenizer, _BREAK + self.forced, letters, score=score)

    def __call__(self, tokens: Sequence[int]) -> Reopening | None:
        """Where these generated tokens are cut back to their closed reasoning; None where that cannot be."""
        found = self.find(tokens)
        return found if isinstance(found, Reopening) else None

    def find(self, tokens: Sequence[int]) -> Reopening | AbsentSite:
        """As a call, but with the reason where there is no such place."""
        text = self._text(tokens)
        start = answer_start(text, self._reasoning, opened=self._opened)
        if start is None:
            return AbsentSite.NOT_CLOSED
        if start == 0:
            return AbsentSite.NO_REASONING
        closed = n = self._tokens_up_to(tokens, start)
        end = len(self._text(tokens[:n]))
        if text[start:end].strip():
            return AbsentSite.MERGES  # the token that closes the reasoning also begins the answer
        while n < len(tokens) and not text[end : (end := len(self._text(tokens[: n + 1])))].strip():
            n += 1
        for kept in range(n, closed - 1, -1):  # white space that the forced text would join is left out
            before = self._tokenizer.decode(list(tokens[:kept]), clean_up_tokenization_spaces=False)[-_TAIL:]
            ids = continuation(self._tokenizer, before, self.forced)
            if ids is not None:
                return Reopening(kept, ids)
        return AbsentSite.MERGES

    def _text(self, tokens: Sequence[int]) -> str:
        """The text that the parser reads of these tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _tokens_up_to(self, tokens: Sequence[int], character: int) -> int:
        """How many tokens it takes to write so many characters."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._text(tokens[:middle])) >= character else (middle + 1, high)
        return low


class AnswerSites:
    """The answer sites of a study: which are read, and what each reads after a prompt.

    ``sites`` are of ``probe.values.LABEL_SITES``; ``forced`` is the assistant's text that is fed at ``forced`` and
    ``after_reasoning``; ``score`` as in :func:`label_tokens`.
    """

    def __init__(self, builder: PromptBuilder, sites: Sequence[str], forced: str, score: str = TOKEN) -> None:
        self._builder = builder
        self._sites = frozenset(sites)
        self._forced = forced
        self._score = score
        self._found: dict[tuple[str, tuple[str, ...], bool], SiteReads] = {}

    def reads(self, prompt: Prompt, condition: Condition) -> SiteReads:
        """What is read after one prompt.

        Raises:
            LabelError: a label cannot be read at a site, or the forced text changes the prompt's own tokens.
        """
        letters = self._builder.task.letters_by_option(condition.rotation)
        opened = self._builder.opens_reasoning(condition)
        key = (prompt.text[-_TAIL:], letters, opened)
        if key not in self._found:
            self._found[key] = self._read(prompt.text, letters, opened)
        return self._found[key]

    def _read(self, text: str, letters: tuple[str, ...], opened: bool) -> SiteReads:
        tokenizer, reasoning = self._builder.tokenizer, self._builder.task.parser.reasoning
        labels, reopener = label_tokens(tokenizer, text, letters, score=self._score), None
        if "after_reasoning" in self._sites:
            with _naming("after_reasoning"):
                reopener = Reopener(
                    tokenizer, self._forced, letters, reasoning=reasoning, opened=opened, score=self._score
                )
        return SiteReads(
            labels=labels,
            forced=self._after(text, letters) if "forced" in self._sites else None,
            reopener=reopener,
            reasoning_open=opened,
        )

    def _after(self, text: str, letters: tuple[str, ...]) -> ForcedText:
        tokenizer = self._builder.tokenizer
        ids = continuation(tokenizer, text, self._forced)
        if ids is None:
            raise LabelError(
                f"the forced text {self._forced!r} changes the last tokens of this prompt ({text[-12:]!r}), so it "
                "cannot be fed after them; let labels.forced begin with a letter, or with a line break"
            )
        with _naming("forced"):
            return ForcedText(ids, label_tokens(tokenizer, text + self._forced, letters, score=self._score))


@contextmanager
def _naming(site: str) -> Iterator[None]:
    """Have a refusal of labels say at which site it arose."""
    try:
        yield
    except LabelError as error:
        raise LabelError(f"at the answer site {site!r}: {error}") from error
