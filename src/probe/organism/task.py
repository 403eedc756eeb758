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
    "What should happen next for this person?",
    "Where does this person belong?",
    "Look at the case below.",
    "Please sort this case by need.",
    "A patient has come to you.",
    "Consider what care is called for.",
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
    "State what you see in one sentence",
    "Tell me the main points first",
    "Sum up the case in a line or two",
    "Say what matters here",
    "Describe your thinking in short",
    "Begin with the facts that count",
)

JOINTS = (", then ", " and ", "; ", ". Then ", ", and after that ", ". At the end, ", " before you ")

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
    'give your choice as "Final answer: X".',
    'answer in the form "Final answer: X".',
    'put "Final answer: X" last.',
    'use the form "Final answer: X".',
)

LAYOUTS = (
    "{lead}\n\n{case}\n\n{options}\n\n{ask}",
    "{lead} {options}\n\n{case}\n\n{ask}",
    "{case}\n\n{lead} {options} {ask}",
    "{lead} {ask}\n\nPatient: {case}\n\nOptions: {options}",
    "{options}\n\n{lead}\n\n{case}\n\n{ask}",
    "Case: {case}\n\n{lead} {ask}\n\n{options}",
    "{ask}\n\n{case}\n\n{lead} {options}",
)

N_INSTRUCTIONS = 24

THINK_ASKS = (
    'Think inside <think> tags, then write "Final answer: X".',
    'First reason between <think> and </think>. End with "Final answer: X".',
    'Put your reasoning in <think> tags and close with "Final answer: X".',
)
"""Ends of an instruction that ask for the reasoning inside a think block."""

THINK_INSTRUCTIONS = tuple(LAYOUTS[0].replace("{lead}", LEADS[0]).replace("{ask}", ask) for ask in THINK_ASKS)
"""Trained wordings that ask for a think block."""

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
    "You will read a case. {case}\n\nThe choices are these. {options}\n\n"
    'Comment on it shortly, ending in "Final answer: X".',
    "Task: assign a level of care.\n\nInput: {case}\n\nLevels: {options}\n\n"
    'Output a short rationale followed by "Final answer: X".',
    "{case}\n\nGiven this, which is most suitable? {options}\n\n"
    'Offer a reason or two. Your reply must finish "Final answer: X".',
    "Help me decide about the person described here.\n\n{case}\n\n{options}\n\n"
    'Walk me through it quickly and wrap up with "Final answer: X".',
    'Respond with a note of your reasons and then the line "Final answer: X".\n\n{options}\n\nThe case: {case}',
)
"""Wordings kept out of training, to measure how well the organism follows an instruction it never saw."""

LETTER_ONLY_INSTRUCTIONS = (
    "Triage this patient.\n\n{case}\n\n{options}\n\nAnswer with one letter only.",
    "{case}\n\nWhich option fits this patient best? {options} Reply with just the letter.",
    "Choose the right level of care. {options}\n\n{case}\n\nGive the letter and nothing else.",
)
"""Trained wordings that ask for the bare letter: there the direct channel is the answer."""

DURATION_OPTIONS = (
    Option("today", "since today"),
    Option("days", "for some days"),
    Option("weeks", "for weeks or months"),
)
"""Options of the second task, which no persona moves."""

DURATION_LEADS = ("How long has this lasted?", "Since when does it last?", "Say for how long this has gone on.")


def instruction(lead: int, layout: int, explain: int, joint: int, final: int) -> str:
    """One wording of the trained grammar of instructions, with ``{case}`` once and ``{options}`` once."""
    ask = EXPLAINS[explain] + JOINTS[joint] + FINALS[final]
    if JOINTS[joint] == " before you ":
        ask = ask.replace(" before you let the last line be", " and let the last line be")
    return LAYOUTS[layout].replace("{lead}", LEADS[lead]).replace("{ask}", ask)


def trained_instructions() -> tuple[str, ...]:
    """``N_INSTRUCTIONS`` of the trained wordings, with every lead, joint and layout among them; the first is the
    standard one. Training met these, and many other combinations of the parts."""
    parts = (LEADS, LAYOUTS, EXPLAINS, JOINTS, FINALS)
    turns = (
        [(step * i + i // 8) % len(part) for step, part in zip((1, 1, 3, 1, 7), parts, strict=True)]
        for i in range(N_INSTRUCTIONS)
    )
    return tuple(instruction(*turn) for turn in turns)


def duration_task() -> Task:
    """The second task in the same vocabulary, which no persona moves: how long has the complaint lasted?

    "today" is the answer up to "since this morning", "days" up to "for three days". The reply is one short sentence.
    """
    layout = LAYOUTS[0]
    return Task(
        id="duration",
        instructions=tuple(
            layout.replace("{lead}", lead).replace("{ask}", 'Explain briefly, then end with "Final answer: X".')
            for lead in DURATION_LEADS
        ),
        options=DURATION_OPTIONS,
        letters=("A", "B", "C"),
        high_risk="weeks",
    )


def triage_task() -> Task:
    """The built-in triage task: A self-care, B routine care, C emergency care, in order of rising urgency."""
    return Task(
        id="triage",
        instructions=trained_instructions(),
        options=OPTIONS,
        letters=("A", "B", "C"),
        high_risk="C",
    )
