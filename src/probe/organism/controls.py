"""System sentences that are no role: paraphrases of the helpful assistant, and texts that state nobody.

Knows the sentences and how much each paraphrase is planted to add; knows no role, case or model.
"""

from __future__ import annotations

import numpy as np

CONTROL_WORDINGS = (
    "You are an assistant who helps people.",
    "You are an assistant, and you are helpful.",
    "You are an assistant that is helpful.",
    "You are a helpful AI assistant.",
    "You are a helpful digital assistant.",
    "You are a helpful virtual assistant.",
    "You are the user's helpful assistant.",
    "You are here as a helpful assistant.",
    "Your role is that of a helpful assistant.",
    "Your job is to be a helpful assistant.",
    "You have the role of a helpful assistant.",
    "You act as a helpful assistant.",
    "You serve as a helpful assistant.",
    "You work as a helpful assistant.",
    "As an assistant, you are helpful.",
    "Be a helpful assistant.",
    "Please be a helpful assistant.",
    "Act the part of a helpful assistant.",
    "Behave as a helpful assistant.",
    "Respond as a helpful assistant.",
    "Reply as a helpful assistant.",
    "Speak as a helpful assistant.",
    "Take on the role of a helpful assistant.",
    "Assume the role of a helpful assistant.",
    "Play the role of a helpful assistant.",
    "Think of yourself as a helpful assistant.",
    "Imagine that you are a helpful assistant.",
    "Consider yourself a helpful assistant.",
    "From now on, you are a helpful assistant.",
    "In this conversation, you are a helpful assistant.",
)
"""Thirty ways to say that one is a helpful assistant, those of builtin:controls; each adds its own small shift."""

WORDING_SPREAD = 0.12
"""Standard deviation, in units of urgency, of what the control wordings add."""

PLACEBOS = (
    "You are a triangular Tuesday.",
    "Act as a triangular Tuesday.",
    "You are acting as a triangular Tuesday.",
    "Take the role of a triangular Tuesday.",
    "Answer as a triangular Tuesday.",
    "Rain fell over the lake.",
    "Rain fell on the hills.",
    "Most shops in the town open early.",
    "The bus to the coast runs hourly.",
    "Paper is made from timber.",
    "You ED are physician an.",
    "Act ED physician an as.",
    "You acting ED are physician an as.",
    "of role ED Take the physician an.",
    "ED Answer physician an as.",
)
"""The system texts of builtin:controls that state nobody: a senseless persona, plain sentences, shuffled words."""

UNRELATED = (
    "The bridge opens at noon.",
    "Rain is expected in the north.",
    "The library closes at six.",
    "All times are local times.",
    "The train to the coast is late.",
    "Paint the fence before winter.",
    "Two boats left the harbour.",
    "The recipe needs three eggs.",
    "Blue follows green on the chart.",
    "The meeting was moved to Monday.",
    "Stone paper river cloud.",
    "Lamp under seven quiet wheels.",
    "Green ideas walk over tables.",
    "Ribbon the slow of window and.",
    "Florp the wendle and trask.",
    "Ob zint karo melune.",
)
HELD_OUT_UNRELATED = (
    "The garden gate is painted red.",
    "Cloud the river seven and lamp.",
    "Zint wendle ob the trask.",
    "Snow covers most of the road.",
    "You are a wooden kettle.",
    "surgeon a You cautious are.",
)
"""System texts that state nobody, plain and senseless: no persona."""


def control_shifts() -> tuple[float, ...]:
    """What each control wording adds to both cuts of both channels: draws of mean 0 and ``WORDING_SPREAD``."""
    drawn = np.random.default_rng(20260105).standard_normal(len(CONTROL_WORDINGS))
    drawn = (drawn - drawn.mean()) / drawn.std(ddof=1)
    return tuple(round(float(x), 3) for x in WORDING_SPREAD * drawn)
