"""What one row's pass gave, before its answer is parsed. Knows tokens and sites; knows no text and no model."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from probe.capture.forks import ForkRead
from probe.values import AbsentSite, LabelRead

KEPT_STEPS = 8
"""How many steps whose token holds a label letter are kept per row, for the ``answer`` site: the newest ones, articles
giving way first. The first token needs no place: its site is ``prompt_end``."""


@dataclass(frozen=True, eq=False)
class LetterStep:
    """A decoding step whose token holds a label letter: its index among the generated tokens, what was read at the
    position before it by stream (nothing where no site lies in the answer), and whether the token may as well be a word
    (the article)."""

    index: int
    values: dict[str, Float[Tensor, "layer width"]]
    read: LabelRead
    word: bool = False


@dataclass(eq=False)
class RawRow:
    """What one row's pass gave, still being filled while the batch decodes.

    ``values[stream, position]`` are the activations of the pass's points; an absent site has no key. ``stop`` is
    ``end`` (the model ended its turn), ``length`` (new-token cap), ``context`` or ``given`` (the given tokens are all
    fed). ``tokens`` leave out the end token. ``letter_steps`` are the newest of ``n_letter_steps``. ``forks`` maps each
    fork to what it gave, or to the reason why it gave nothing (the cache cannot go back there, or the context has no
    room); where reasoning never closed it has no key.
    ``given_logp[i]`` is the log-probability of the i-th given token given all that precedes it (fp32, nats).
    """

    prompt_read: LabelRead
    values: dict[tuple[str, str], Float[Tensor, "layer width"]]
    cap: tuple[int, str]
    tokens: list[int] = field(default_factory=list)
    stop: str = ""
    letter_steps: list[LetterStep] = field(default_factory=list)
    n_letter_steps: int = 0
    forks: dict[str, ForkRead | AbsentSite] = field(default_factory=dict)
    given_logp: Float[Tensor, " token"] | None = None

    def at(self, position: str) -> dict[str, Float[Tensor, "layer width"]]:
        """The activations at one position, by stream."""
        return {stream: value for (stream, place), value in self.values.items() if place == position}

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Append a chosen token unless it ends the answer; returns whether it was appended."""
        if token in ends:
            self.stop = "end"
            return False
        self.tokens.append(token)
        if len(self.tokens) >= self.cap[0]:
            self.stop = self.cap[1]
        return True

    def keep(self, step: LetterStep) -> None:
        """Add the newest letter step; the oldest article, else the oldest, gives way."""
        self.letter_steps.append(step)
        self.n_letter_steps += 1
        if len(self.letter_steps) > KEPT_STEPS:
            words = [at for at, kept in enumerate(self.letter_steps) if kept.word]
            del self.letter_steps[words[0] if words else 0]
