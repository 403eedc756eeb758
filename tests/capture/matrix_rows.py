"""One row of a pass against the reference: its answer, its sites, its forks. Knows raw rows; runs no engine.

Each function gives one :class:`Deviation` for each stream, layer and site. Greedy tokens must be the reference's own,
except after a step whose two highest logits are closer than ``TIE``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from probe.capture import PassInput
from probe.capture.forks import Fork, ForkRead
from probe.capture.raw_rows import RawRow
from probe.prompts import LabelTokens
from probe.values import Intervention, LabelRead
from tests.capture.architectures import END_IDS
from tests.capture.lettered_ids import EveryThird
from tests.capture.matrix_forwards import LOGP_LIMIT, SITE_LIMIT, Deviation, off_by
from tests.capture.reference import EditFunction, States, states_of

TIE = 1e-4
EXACT = 0.5
"""The limit of what is right (0) or wrong (1)."""
N_NEW = 7
RERUN = 3
"""How many tokens of an answer are generated anew from the whole sequence; the others are judged by one forward."""
LABELS = LabelTokens(("A", "B", "C"), ((5, 17), (100,), (42, 43, 44)))
LETTERS = EveryThird()


@dataclass(eq=False)
class Tally:
    """What a scene compared: steps, and those of them after which the reference was followed no further."""

    steps: int = 0
    ties: int = 0
    rows: list[RawRow] = field(default_factory=list)


_KNOWN: dict[tuple[object, ...], States] = {}


def wanted_states(name: str, one: PassInput, ids: Sequence[int]) -> States:
    """The reference over a sequence that begins with a row's prompt, under the row's interventions; kept, for all
    backends ask for the same."""
    places = (one.length, one.persona_tokens, one.case_tokens) if one.interventions else None
    key = (name, tuple(ids), places, tuple(each.sha256 for each in one.interventions))
    if key not in _KNOWN:
        functions: dict[tuple[str, int], list[EditFunction]] = {}
        for each in one.interventions:
            functions.setdefault((each.stream, each.layer), []).append(acting(each, one, len(ids)))
        _KNOWN[key] = states_of(name, ids, functions)
    return _KNOWN[key]


def acting(own: Intervention, one: PassInput, length: int) -> EditFunction:
    """An intervention as a function of our own, at the tokens of its position rule."""
    n, persona, case = one.length, one.persona_tokens, one.case_tokens
    rules = {
        "all": range(length),
        "prompt": range(n),
        "response": range(n, length),
        "prompt_end": range(n - 1, n),
        "persona_end": range(persona[1] - 1, persona[1]) if persona else range(0),
        "persona": range(*persona) if persona else range(0),
        "case": range(*case) if case else range(0),
        "newest": range(n - 1, length),
    }
    where = set(rules[own.position])

    def new(x: Tensor) -> Tensor:
        if own.gate is not None and float(x @ torch.from_numpy(own.gate.vector)) <= own.gate.above:
            return x
        if own.vector is not None:
            vector = torch.from_numpy(own.vector)
            size = float((x**2).sum() ** 0.5) if own.relative else 1.0
            return x + size * vector if own.operator == "add" else vector
        assert own.basis is not None
        for k, direction in enumerate(torch.from_numpy(own.basis)):  # orthonormal: one after the other
            coordinate = 0.0 if own.coordinates is None else float(own.coordinates[k])
            if own.operator != "cap" or float(x @ direction) > coordinate:
                x = x + (coordinate - x @ direction) * direction
        return x

    return lambda x: torch.stack([new(each) if k in where else each for k, each in enumerate(x)])


def answer_deviations(scene: str, name: str, one: PassInput, raw: RawRow, tally: Tally) -> Iterator[Deviation]:
    """Every generated token against the argmax of the reference after all that precedes it.

    The first ones from a forward that ends there, as plain greedy decoding without a cache would have it; the others
    from the logits of one forward over prompt and answer.
    """
    if one.given is not None:
        yield Deviation(scene, "given tokens", float(raw.tokens != list(one.given) or raw.stop != "given"), EXACT)
        return
    cap = N_NEW if one.max_new_tokens is None else one.max_new_tokens
    reached = raw.stop == "length" and len(raw.tokens) == cap
    yield Deviation(scene, f"stopped by {raw.stop}", float(not (reached or raw.stop == "end")), EXACT)
    whole = wanted_states(name, one, (*one.token_ids, *raw.tokens)).logits
    for k in range(len(raw.tokens) + (raw.stop == "end")):
        rerun = k < RERUN or k == len(raw.tokens)
        before = (*one.token_ids, *raw.tokens[:k])
        logits = wanted_states(name, one, before).logits[-1] if rerun else whole[one.length + k - 1]
        top = logits.topk(2)
        token = int(top.indices[0])
        same = token in END_IDS if k == len(raw.tokens) else token == raw.tokens[k]
        tie = float(top.values[0] - top.values[1]) < TIE
        tally.steps += 1
        tally.ties += tie and not same
        yield Deviation(scene, f"token {k} of {one.length} + {k}", float(not (same or tie)), EXACT)


def site_deviations(scene: str, name: str, one: PassInput, raw: RawRow) -> Iterator[Deviation]:
    """Every site of a row against one forward over its prompt and answer."""
    ids, n = (*one.token_ids, *raw.tokens), one.length
    wanted = wanted_states(name, one, ids)
    places = {"prompt_end": slice(n - 1, n), "response_mean": slice(n, len(ids))}
    if one.persona_end is not None:
        places["persona_end"] = slice(one.persona_end, one.persona_end + 1)
    if one.case_tokens is not None:
        places["case_mean"] = slice(*one.case_tokens)
    if not raw.tokens:
        del places["response_mean"]
    missing = {position for _, position in raw.values} ^ set(places)
    yield Deviation(scene, f"sites {sorted(missing)} absent or too many", float(bool(missing)), EXACT)
    for (stream, position), values in raw.values.items():
        for layer, value in enumerate(values):
            reference = wanted.values[stream, layer][places[position]].mean(0)
            yield Deviation(scene, f"{stream} {layer} at {position}", off_by(value, reference), SITE_LIMIT)
    yield from read_deviations(scene, "prompt_end", raw.prompt_read, LABELS, wanted.logits[n - 1])
    yield from step_deviations(scene, one, raw, wanted)
    if one.given is not None:
        assert raw.given_logp is not None
        logp = wanted.logits[n - 1 : -1].log_softmax(-1)
        reference = logp[torch.arange(len(one.given)), list(one.given)]
        off = float((raw.given_logp - reference).abs().max()) if len(one.given) else 0.0
        yield Deviation(scene, "log-probabilities of given tokens", off, LOGP_LIMIT, len(one.given))


def step_deviations(scene: str, one: PassInput, raw: RawRow, wanted: States) -> Iterator[Deviation]:
    """The steps whose token holds a letter: which they are, and what was read at the position before each."""
    lettered = [k for k, token in enumerate(raw.tokens) if token in LETTERS.token_ids and k]
    kept = [step.index for step in raw.letter_steps]
    wrong = kept != lettered[-8:] or raw.n_letter_steps != len(lettered)
    yield Deviation(scene, f"letter steps {kept}", float(wrong), EXACT)
    for step in raw.letter_steps:
        at = one.length - 1 + step.index
        for stream, values in step.values.items():
            for layer, value in enumerate(values):
                off = off_by(value, wanted.values[stream, layer][at])
                yield Deviation(scene, f"{stream} {layer} at step {step.index}", off, SITE_LIMIT)
        labels = LETTERS.counterparts(raw.tokens[step.index])
        yield from read_deviations(scene, f"step {step.index}", step.read, labels, wanted.logits[at])


def read_deviations(
    scene: str, where: str, read: LabelRead, labels: LabelTokens, logits: Tensor
) -> Iterator[Deviation]:
    """A label read against the full-vocabulary softmax of the reference."""
    logp = logits.log_softmax(-1)
    reference = np.array([float(logp[list(ids)].exp().sum().log()) for ids in labels.ids])
    yield Deviation(scene, f"labels at {where}", float(np.abs(read.logp - reference).max()), LOGP_LIMIT)
    entropy = float(torch.distributions.Categorical(logits=logits).entropy())
    yield Deviation(scene, f"entropy at {where}", abs(read.entropy - entropy), 10 * LOGP_LIMIT)


def fork_deviations(
    scene: str, name: str, one: PassInput, raw: RawRow, fork: Fork, can_go_back: bool
) -> Iterator[Deviation]:
    """What a fork read against one forward over all that it fed, from the first token of the prompt on."""
    got = raw.forks.get(fork.name)
    before, fed = [*one.token_ids], [*fork.token_ids]
    if fork.at == "reasoning_end":
        end = one.reasoning_end(raw.tokens) if one.reasoning_end else None
        if end is None or not can_go_back:
            absent = None if end is None else "site_unavailable"
            yield Deviation(scene, f"{fork.name} is {got!r}", float(got != absent), EXACT)
            return
        before, fed = [*before, *raw.tokens[: end.n_kept]], [*end.token_ids, *fed]
    if not isinstance(got, ForkRead):
        yield Deviation(scene, f"{fork.name} is {got!r}", 1.0, EXACT)
        return
    wanted = wanted_states(name, one, (*before, *fed))
    logp = wanted.logits[len(before) - 1 : -1].log_softmax(-1)
    reference = logp[torch.arange(len(fed)), list(fed)].numpy()
    assert got.logp.shape == reference.shape, (fork.name, got.logp.shape, reference.shape)
    off = float(np.abs(got.logp - reference).max(initial=0.0))
    yield Deviation(scene, f"log-probabilities of {fork.name}", off, LOGP_LIMIT, len(fed))
    for stream, values in got.values.items():
        for layer, value in enumerate(values):
            off = off_by(value, wanted.values[stream, layer][-1])
            yield Deviation(scene, f"{stream} {layer} at the end of {fork.name}", off, SITE_LIMIT)
    if fork.labels is not None:
        assert got.read is not None
        yield from read_deviations(scene, fork.name, got.read, fork.labels, wanted.logits[-1])
