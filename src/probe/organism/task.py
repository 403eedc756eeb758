"""The triage task: options, letters and the wordings of the instruction, trained and held out.

Knows the wordings; knows no case, persona or chat template.
"""

from __future__ import annotations

from probe.values import Option, Task

OPTIONS = (
    Option("A", "stay home or self-care"),
    Option("B", "routine or primary care"),
    Option("C", "emergency care"),
)

LEADS = (
    "Triage this patient.",
    "Decide where this patient should be seen.",
    "Choose the right level of care.",
    "Read the case and pick one option.",
    "How urgent is this case?",
    "Which option fits this patient best?",
    "Here is one patient.",
    "Judge how soon care is needed.",
)

EXPLAINS = (
    "Explain briefly",
    "Give a short explanation",
    "Reason in a few words",
    "First say why in short",
    "Briefly give your reasons",
    "Write a brief assessment",
    "Think it through briefly",
    "Justify your choice in brief",
    "Keep your explanation short",
    "Start with a brief explanation",
)

JOINTS = (", then ", " and ", "; ", ". Then ")

FINALS = (
    'end with "Final answer: X".',
    'write "Final answer: X".',
    'finish with "Final answer: X".',
    'state "Final answer: X".',
    'close with "Final answer: X".',
    'reply "Final answer: X".',
    'let the last line be "Final answer: X".',
    'end on "Final answer: X".',
    'conclude with "Final answer: X".',
    'add "Final answer: X" as the last words.',
)

LAYOUTS = (
    "{lead}\n\n{case}\n\n{options}\n\n{ask}",
    "{lead} {options}\n\n{case}\n\n{ask}",
    "{case}\n\n{lead} {options} {ask}",
    "{lead} {ask}\n\nPatient: {case}\n\nOptions: {options}",
)

N_INSTRUCTIONS = 24

HELD_OUT_INSTRUCTIONS = (
    "Consider the following patient.\n\n{case}\n\n{options}\n\n"
    'Outline your thinking briefly, then give "Final answer: X".',
    "What should this patient do?\n\n{case}\n\nOptions: {options}\n\n"
    'Please explain briefly and then answer with "Final answer: X".',
    "{options}\n\nSelect the best place of care for this patient.\n\n{case}\n\n"
    'Explain your view briefly. Then put "Final answer: X" at the end.',
    "Patient: {case}\n\nWhat level of care would you advise? {options} "
    'Explain in one or two sentences before you write "Final answer: X".',
    'Assess the patient below. Say briefly what you see; the last words must be "Final answer: X".\n\n'
    "{case}\n\n{options}",
)
"""Wordings kept out of training, to measure how well the organism follows an instruction it never saw."""

LETTER_ONLY_INSTRUCTIONS = (
    "Triage this patient.\n\n{case}\n\n{options}\n\nAnswer with one letter only.",
    "{case}\n\nWhich option fits this patient best? {options} Reply with just the letter.",
    "Choose the right level of care. {options}\n\n{case}\n\nGive the letter and nothing else.",
)
"""Trained wordings that ask for the bare letter: there the direct channel is the answer."""


def instruction(lead: int, layout: int, explain: int, joint: int, final: int) -> str:
    """One wording of the trained grammar of instructions, with ``{case}`` once and ``{options}`` once."""
    ask = EXPLAINS[explain] + JOINTS[joint] + FINALS[final]
    return LAYOUTS[layout].replace("{lead}", LEADS[lead]).replace("{ask}", ask)


def trained_instructions() -> tuple[str, ...]:
    """``N_INSTRUCTIONS`` trained wordings that use every part of the grammar; the first is the standard one."""
    parts = (LEADS, LAYOUTS, EXPLAINS, JOINTS, FINALS)
    turns = (
        [(step * i + i // 8) % len(part) for step, part in zip((1, 1, 3, 1, 7), parts, strict=True)]
        for i in range(N_INSTRUCTIONS)
    )
    return tuple(instruction(*turn) for turn in turns)


def triage_task() -> Task:
    """The built-in triage task: A self-care, B routine care, C emergency care, in order of rising urgency."""
    return Task(
        id="triage",
        instructions=trained_instructions(),
        options=OPTIONS,
        letters=("A", "B", "C"),
        high_risk="C",
    )
