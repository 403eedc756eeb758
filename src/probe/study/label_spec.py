"""Where labels are read and how they are scored, as settings. Knows answer sites; knows no letter and no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PlainValidator

from probe.study.checked import CLOSED, Text, distinct
from probe.study.located import kind_of
from probe.values import LABEL_SITES
from probe.values.nearest import nearest


def _label_site(name: Any) -> str:
    if name not in LABEL_SITES:
        raise ValueError(f"holds {kind_of(name)}, which is no answer site. {nearest(str(name), LABEL_SITES, 'site')}")
    return str(name)


def _forced(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty. Write how the answer is made to begin, as 'Final answer:'")
    return text


@dataclass(frozen=True)
class LabelSpec:
    """Where the log-probabilities of the labels are read, and how a label is scored.

    ``sites`` are of ``probe.values.LABEL_SITES``. ``forced`` is the text that is fed as the answer's beginning at the
    sites ``forced`` and ``after_reasoning``. ``score``: a label must be one token, or it may be several, which are then
    scored as a continuation.
    """

    __pydantic_config__ = CLOSED

    sites: Annotated[tuple[Annotated[str, PlainValidator(_label_site)], ...], AfterValidator(distinct)] = (
        "prompt_end",
        "answer",
    )
    forced: Annotated[Text, AfterValidator(_forced)] = "Final answer:"
    score: Literal["token", "continuation"] = "token"

    @property
    def forces(self) -> bool:
        """Whether the forced text is fed anywhere."""
        return bool({"forced", "after_reasoning"} & set(self.sites))
