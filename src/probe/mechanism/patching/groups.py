"""Tokens of a run by their role, and which of two runs' tokens correspond. Knows token indices; knows no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Tokens: TypeAlias = tuple[int, ...]
Span: TypeAlias = tuple[int, int]

PERSONA, TEMPLATE, INSTRUCTION, CASE = "persona", "template", "instruction", "case"
PROMPT_END, GENERATED, ANSWER, ALL_TOKENS = "prompt_end", "generated", "answer", "all tokens"

GROUPS = (PERSONA, TEMPLATE, INSTRUCTION, CASE, PROMPT_END, GENERATED, ANSWER, ALL_TOKENS)
"""``persona``: tokens that overlap the persona's text. ``case``: those wholly inside the case's. ``instruction``: the
rest of the user's text. ``prompt_end``: the last prompt token. ``template``: every other prompt token (turn marks).
``answer``: the last token of a forced text, whose next token is the letter. ``generated``: that text before it."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of one run stand, as ``[start, end)`` of token indices over prompt and forced text.

    ``user`` is the user's text (instruction and case); ``n_text`` the tokens of the forced text, 0 where the label is
    read at the prompt's end.
    """

    n_prompt: int
    persona: Span | None
    user: Span | None
    case: Span | None
    n_text: int = 0

    @property
    def length(self) -> int:
        """Tokens of the run."""
        return self.n_prompt + self.n_text

    @property
    def read_group(self) -> str:
        """The group whose one token the label is read at."""
        return ANSWER if self.n_text else PROMPT_END

    @property
    def groups(self) -> dict[str, Tokens]:
        """The tokens of each group; a group without tokens is not there. Beside ``all tokens`` they share none."""
        last = self.n_prompt - 1
        persona, case, user = (set(range(*span)) if span else set() for span in (self.persona, self.case, self.user))
        text = range(self.n_prompt, self.length)
        found = {
            PERSONA: persona - {last},
            TEMPLATE: set(range(last)) - persona - user - case,
            INSTRUCTION: user - case - persona - {last},
            CASE: case - {last},
            PROMPT_END: {last},
            GENERATED: set(text[:-1]),
            ANSWER: set(text[-1:]),
            ALL_TOKENS: set(range(self.length)),
        }
        return {name: tuple(sorted(tokens)) for name, tokens in found.items() if tokens}


@dataclass(frozen=True)
class Alignment:
    """Which tokens of a receiving run take the place of which tokens of a donor, one for one and by role.

    ``pairs[group]`` are the donor's tokens and the receiver's. ``absent[group]`` says why a group that one of the runs
    has cannot be patched: nothing is aligned that does not correspond.
    """

    pairs: Mapping[str, tuple[Tokens, Tokens]]
    absent: Mapping[str, str]


def align(
    donor: Layout,
    receiver: Layout,
    donor_ids: Sequence[int],
    receiver_ids: Sequence[int],
    *,
    same_case: bool = True,
) -> Alignment:
    """The groups of two runs that have as many tokens each and, outside of the persona's text, the same ones.

    ``same_case=False``: the runs are of two cases, so that the tokens of the case and of what was generated may differ;
    that of the answer stands alone and corresponds by its role.
    """
    ours, theirs = receiver.groups, donor.groups
    pairs: dict[str, tuple[Tokens, Tokens]] = {}
    absent: dict[str, str] = {}
    free = {PERSONA, ALL_TOKENS} | (set() if same_case else {CASE, GENERATED, ANSWER})
    for name in GROUPS:
        mine, other = ours.get(name, ()), theirs.get(name, ())
        if not mine and not other:
            continue
        if len(mine) != len(other):
            absent[name] = f"{len(other)} tokens in the donor's run, {len(mine)} in the other"
        elif name not in free and [donor_ids[i] for i in other] != [receiver_ids[i] for i in mine]:
            absent[name] = "the tokens differ"
        else:
            pairs[name] = (other, mine)
    if ALL_TOKENS in pairs and (absent or any(pairs[name][0] != pairs[name][1] for name in pairs)):
        # As many tokens, but not in the same roles at the same places.
        del pairs[ALL_TOKENS]
        absent[ALL_TOKENS] = "the runs' tokens do not stand at the same places"
    return Alignment(pairs, absent)
