"""A task: the options, the letters that stand for them, and the instruction around a case."""

from __future__ import annotations

from dataclasses import dataclass

from probe.values.parsing import DEFAULT_PARSER, ParserSettings


@dataclass(frozen=True)
class Option:
    """A semantic option: its id is stored and counted, its text is shown to the model."""

    id: str
    text: str


@dataclass(frozen=True)
class Task:
    """Options in order of rising urgency, and the wordings of the instruction.

    An instruction wording holds ``{case}`` once and ``{options}`` once. Each option is shown as ``option_format``
    (``{letter}``, ``{text}``), joined by ``option_separator``. Labels are always *options*; a rotation only changes
    which letter stands for which option. ``parser`` says how the label of a generated answer is read.
    """

    id: str
    instructions: tuple[str, ...]
    options: tuple[Option, ...]
    letters: tuple[str, ...]
    high_risk: str
    option_format: str = "{letter}: {text}."
    option_separator: str = " "
    parser: ParserSettings = DEFAULT_PARSER

    @property
    def option_ids(self) -> tuple[str, ...]:
        """Ids of the options, in order of rising urgency."""
        return tuple(option.id for option in self.options)

    def letters_by_option(self, rotation: int = 0) -> tuple[str, ...]:
        """The letter that stands for each option, in option order: option ``i`` has letter ``i + rotation``."""
        n = len(self.options)
        return tuple(self.letters[(i + rotation) % n] for i in range(n))
