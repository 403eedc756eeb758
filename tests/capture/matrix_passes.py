"""Whole passes of the engine against the reference: answers, sites, forks, given texts, interventions.

Knows ``run_pass`` and the reference. Each scene gives one :class:`Deviation` for each row, stream, layer and site.
Greedy tokens must be the reference's own, except after a step whose two highest logits are closer than ``TIE``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from probe.capture import PassInput, PassSettings, Sampling, prefixes, run_pass, slots, teacher_forcing, waiting
from probe.capture.forks import Fork, ForkRead
from probe.capture.raw_rows import RawRow
from probe.capture.sampling import row_generator
from probe.models.points import HookPoint
from probe.prompts import LabelTokens, Reopening
from probe.values import EDIT_POSITIONS, OPERATORS, STREAMS, Intervention, LabelRead
from tests.capture.architectures import END_IDS, backend, prompts
from tests.capture.lettered_ids import EveryThird
from tests.capture.matrix_forwards import LOGP_LIMIT, SITE_LIMIT, Deviation, all_points, off_by
from tests.capture.reference import EditFunction, States, states_of
from tests.tiny_models import VOCABULARY

TIE = 1e-4
EXACT = 0.5
"""The limit of what is right (0) or wrong (1)."""
N_NEW = 7
POSITIONS = ("prompt_end", "persona_end", "case_mean", "answer", "response_mean")
LABELS = LabelTokens(("A", "B", "C"), ((5, 17), (100,), (42, 43, 44)))
SAMPLING = Sampling(temperature=1.3, top_p=0.9, top_k=50)
RERUN = 3
"""How many tokens of an answer are generated anew from the whole sequence; the others are judged by one forward."""


LETTERS = EveryThird()


@dataclass(eq=False)
class Tally:
    """What a scene compared: steps, and those of them after which the reference was followed no further."""

    steps: int = 0
    ties: int = 0
    rows: list[RawRow] = field(default_factory=list)


def row(tokens: Sequence[int], persona: tuple[int, int] | None = (2, 6), **more: object) -> PassInput:
    """A row with a persona at tokens 2 to 5 and a case from the third of its tokens up to the last but three."""
    case = (max(len(tokens) // 3, 7), len(tokens) - 3)
    base = PassInput(
        tuple(tokens),
        None if persona is None else persona[1] - 1,
        case,
        LABELS,
        key=(f"row {zlib.crc32(repr(tuple(tokens)).encode())}", 0),
        persona_tokens=persona,
    )
    return replace(base, **more)  # type: ignore[arg-type]


def run(
    name: str, kind: str, rows: Sequence[PassInput], batch_size: int, sampling: Sampling | None = None
) -> list[RawRow]:
    """The engine's rows, every point of every stream at every site."""
    model = backend(name, kind)
    settings = PassSettings(all_points(model), POSITIONS, N_NEW, sampling)
    return run_pass(model, rows, settings, LETTERS, batch_size=batch_size)


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
    }
    where = set(rules[own.position])

    def new(x: Tensor) -> Tensor:
        if own.vector is not None:
            vector = torch.from_numpy(own.vector)
            return x + vector if own.operator == "add" else vector
        assert own.basis is not None
        for k, direction in enumerate(torch.from_numpy(own.basis)):  # orthonormal: one after the other
            coordinate = 0.0 if own.coordinates is None else float(own.coordinates[k])
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


def compare(
    scene: str, name: str, kind: str, rows: Sequence[PassInput], *, batch_size: int, tally: Tally | None = None
) -> Iterator[Deviation]:
    """Run the rows and compare all that each of them gave."""
    tally = Tally() if tally is None else tally
    tally.rows = run(name, kind, rows, batch_size)
    can_go_back = backend(name, kind).facts.caching != "recurrent"
    for i, (one, raw) in enumerate(zip(rows, tally.rows, strict=True)):
        found = [
            *answer_deviations(scene, name, one, raw, tally),
            *site_deviations(scene, name, one, raw),
            *(each for fork in one.forks for each in fork_deviations(scene, name, one, raw, fork, can_go_back)),
        ]
        yield from (replace(each, what=f"{each.what}, row {i}") for each in found)
    # Near-ties are rare by construction: an engine that used them as an excuse would be noticed.
    yield Deviation(scene, "ties", float(tally.ties), 1 + 0.02 * tally.steps)


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


def narrow() -> ExitStack:
    """Buffers, prefills and pieces of given texts so small that rows of tests make them move, grow and split; and no
    shared beginning too short to be run once."""
    stack = ExitStack()
    for module, name, value in (
        (slots, "_CHUNK", 3),
        (waiting, "_FED_AT_ONCE", {"cpu": 50}),
        (teacher_forcing, "_LOGITS", 12 * VOCABULARY),
        (prefixes, "WORTH", 1),
    ):
        stack.enter_context(patch.object(module, name, value))
    return stack


def alone(name: str, kind: str) -> Iterator[Deviation]:
    """One row at a time; one of them has no persona, and one may generate nothing."""
    first, second, third, *_ = prompts(name)
    rows = [row(first), row(second, None), row(third, max_new_tokens=0)]
    yield from compare("alone", name, kind, rows, batch_size=1)


def batched(name: str, kind: str) -> Iterator[Deviation]:
    """Rows of unequal lengths together."""
    rows = [row(tokens, None if i == 3 else (2, 6)) for i, tokens in enumerate(prompts(name))]
    yield from compare("batch", name, kind, rows, batch_size=len(rows))


LATE = (19, 31, 12, 27, 14, 23, 16, 30, 12)
CAPS = (2, 7, 5, 1, 7, 3, 6, 4, 7)


def late_rows(name: str) -> list[PassInput]:
    """Rows for few slots, with caps of their own: they leave and others enter in the middle of answers."""
    lengths, caps = (33, *LATE, *LATE), (7, *(7, 6, 5) * 6)
    return [row(p, max_new_tokens=cap) for p, cap in zip(prompts(name, lengths), caps, strict=True)]


def late(name: str, kind: str) -> Iterator[Deviation]:
    """Four slots for nineteen rows, in buffers that grow and move under them."""
    with narrow():
        yield from compare("late rows", name, kind, late_rows(name), batch_size=4)


def shared_rows(name: str) -> list[PassInput]:
    """Two families of rows with beginnings of 13 and 16 tokens in common, and one row that shares nothing.

    Some suffixes are equal in length and some not; the persona ends inside of what is shared.
    """
    one = prompts(name, (24, 18, 24, 31), shared=13)
    two = prompts(name, (20, 28, 20), shared=16)
    rows = [row(tokens) for tokens in (*one, *two, prompts(name)[0])]
    # The case begins after what is shared, or else a prefix would have to end before it.
    return [replace(each, case_tokens=(16, each.length - 1)) for each in rows]


def shared(name: str, kind: str) -> Iterator[Deviation]:
    """Shared beginnings, run once however short they are; in the batch of four slots rows of both families meet."""
    rows = shared_rows(name)
    with patch.object(prefixes, "WORTH", 1):
        settings = PassSettings(all_points(backend(name, kind)), POSITIONS, N_NEW)
        clusters = sorted(cluster.n_prefix for cluster in prefixes.share_prefixes(rows, settings))
        assert clusters == [0, 13, 16]
        yield from compare("shared prefix", name, kind, rows, batch_size=4)


def steering(name: str, point: HookPoint, operator: str, position: str, width: int) -> Intervention:
    """An operator about as large as what it acts on."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {point} {operator} {position}".encode()))
    size = float(wanted_states(name, row(prompts(name)[0]), prompts(name)[0]).values[point.stream, point.layer].std())
    vector = (size * rng.normal(size=width)).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(width, 2)))[0].T.astype(np.float32)
    takes_vector = operator in ("add", "patch")
    return Intervention(
        point.layer,
        operator,
        vector if takes_vector else None,
        None if takes_vector else basis,
        np.array([size, -size], np.float32) if operator == "set" else None,
        position,
        point.stream,
    )


def intervention_rows(name: str, kind: str) -> list[PassInput]:
    """Rows for every position rule and every operator, two interventions on each second row, one row with none.

    They share beginnings: those steered there have a prefix of their own, those steered later share the plain one.
    """
    model = backend(name, kind)
    n_layers, widths = model.facts.shape.n_layers, model.facts.widths
    streams = [stream for stream in STREAMS if stream in widths and stream != "resid"]
    plain = shared_rows(name)
    rows = [plain[0]]
    for k, position in enumerate((*EDIT_POSITIONS, *EDIT_POSITIONS)):
        points = [(HookPoint("resid", k % (n_layers + 1)), OPERATORS[k % 4])]
        if k % 2 and streams:
            points.append((HookPoint(streams[k // 2 % len(streams)], k % n_layers), OPERATORS[(k // 2) % 4]))
        elif k % 2:
            points.append((points[0][0], OPERATORS[(k + 2) % 4]))
        own = tuple(steering(name, p, op, position, widths[p.stream]) for p, op in points)
        one = replace(plain[k % len(plain)], interventions=own)
        if k == len(EDIT_POSITIONS) + EDIT_POSITIONS.index("persona"):
            one = replace(one, persona_tokens=None, persona_end=None)
        rows.append(replace(one, forks=FORKS[:1], max_new_tokens=4) if k % 3 == 0 else one)
    return rows


def intervened(name: str, kind: str) -> Iterator[Deviation]:
    """Each operator, each position rule, while prompts share beginnings and rows enter late."""
    with patch.object(prefixes, "WORTH", 1):
        yield from compare("intervention", name, kind, intervention_rows(name, kind), batch_size=6)


def reasoning_end(tokens: Sequence[int]) -> Reopening | None:
    """Takes every second token of an answer for its reasoning, and nothing of an answer of one token."""
    return Reopening(len(tokens) // 2, (33,)) if len(tokens) > 1 else None


FORKS = (
    Fork("three", "prompt_end", (7, 8, 10), LABELS),
    Fork("after", "reasoning_end", (21, 22), LABELS),
    Fork("one", "prompt_end", (11,)),
    Fork("none", "prompt_end", (), LABELS),
    Fork("just after", "reasoning_end", ()),
)


def forked(name: str, kind: str) -> Iterator[Deviation]:
    """Forks of several lengths at both places, on some rows; and the rows go on as they do without them."""
    rows = [
        row(tokens, reasoning_end=reasoning_end, forks=FORKS if i % 3 else FORKS[2:3] * (i % 2))
        for i, tokens in enumerate(prompts(name, LATE[:7]))
    ]
    tally = Tally()
    yield from compare("forks", name, kind, rows, batch_size=4, tally=tally)
    without = run(name, kind, [replace(each, forks=()) for each in rows], 4)
    for i, (raw, other) in enumerate(zip(tally.rows, without, strict=True)):
        same = raw.tokens == other.tokens and raw.stop == other.stop
        yield Deviation("forks", f"tokens without them, row {i}", float(not same), EXACT)


def given(name: str, kind: str) -> Iterator[Deviation]:
    """Given answers of unequal lengths beside rows that generate theirs; one runs far beyond what generation may."""
    texts = prompts(name, (9, 1, 70, 4))
    rows = [row(tokens, reasoning_end=reasoning_end, forks=FORKS[:2]) for tokens in prompts(name, LATE[:6])]
    rows = [replace(each, given=texts[i]) if i < len(texts) else each for i, each in enumerate(rows)]
    yield from compare("given", name, kind, rows, batch_size=4)


def crowded_rows(name: str, kind: str) -> list[PassInput]:
    """Rows of every kind: steered, with forks, with given answers, with shared beginnings, with caps of their own."""
    steered = intervention_rows(name, kind)
    texts = prompts(name, (9, 2, 40, 25))
    rows = []
    for i, tokens in enumerate((*[each.token_ids for each in shared_rows(name)], *prompts(name, LATE))):
        one = row(tokens, None if i % 5 == 4 else (2, 6), max_new_tokens=CAPS[i % len(CAPS)])
        if i % 3 == 0:
            one = replace(one, reasoning_end=reasoning_end, forks=FORKS)
        if i % 4 == 1:
            one = replace(one, given=texts[i // 4 % len(texts)], max_new_tokens=None)
        if i % 4 == 2:
            one = replace(one, interventions=steered[i % len(steered)].interventions)
        rows.append(one)
    return rows


def crowded(name: str, kind: str) -> Iterator[Deviation]:
    """All at once in few slots, with buffers that must move, grow and split."""
    with narrow():
        yield from compare("crowded", name, kind, crowded_rows(name, kind), batch_size=3)


def shuffled(name: str, kind: str, seed: int) -> Iterator[Deviation]:
    """As crowded, but who is how, the order of rows, the caps and the number of slots are drawn."""
    rng = np.random.default_rng(seed)
    steered, texts = intervention_rows(name, kind), prompts(name, (9, 2, 40, 25, 1, 17))
    lengths = tuple(int(n) for n in rng.integers(12, 34, 8))
    tokens = [*(each.token_ids for each in shared_rows(name)), *prompts(name, lengths)]
    rows = []
    for i in rng.permutation(len(tokens)):
        one = row(tokens[i], None if rng.random() < 0.2 else (2, 6), max_new_tokens=int(rng.integers(0, N_NEW + 4)))
        if rng.random() < 0.4:
            chosen = rng.permutation(len(FORKS))[: rng.integers(1, len(FORKS) + 1)]
            one = replace(one, reasoning_end=reasoning_end, forks=tuple(FORKS[k] for k in chosen))
        if rng.random() < 0.3:
            one = replace(one, given=texts[rng.integers(len(texts))], max_new_tokens=None)
        if rng.random() < 0.4:
            one = replace(one, interventions=steered[rng.integers(len(steered))].interventions)
        rows.append(one)
    with narrow():
        yield from compare(f"shuffled {seed}", name, kind, rows, batch_size=int(rng.integers(1, 9)))


def sampled(name: str, kind: str) -> Iterator[Deviation]:
    """Drawn tokens are the inverse CDF of the reference's distribution at the row's own uniform numbers.

    A number within 1e-4 of a boundary of the CDF may fall on either side.
    """
    rows = [row(p, max_new_tokens=cap) for p, cap in zip(prompts(name, LATE), CAPS, strict=True)]
    raws = run(name, kind, rows, 3, SAMPLING)
    steps, close = 0, 0
    for i, (one, raw) in enumerate(zip(rows, raws, strict=True)):
        stream = row_generator(*one.key)
        logits = wanted_states(name, one, (*one.token_ids, *raw.tokens)).logits[one.length - 1 :]
        for k in range(len(raw.tokens) + (raw.stop == "end")):
            upto = nucleus(logits[k])
            u = stream.random()
            steps += 1
            near = float((upto - u).abs().min()) < 1e-4
            close += near
            token = int((upto <= u).sum())
            same = token in END_IDS if k == len(raw.tokens) else token == raw.tokens[k]
            yield Deviation("sampled", f"token {k}, row {i}", float(not (same or near)), EXACT)
    yield Deviation("sampled", "draws at a boundary", float(close), 2 + 0.05 * steps)


def nucleus(logits: Tensor) -> Tensor:
    """The CDF over the vocabulary after temperature, top-k and top-p, as their papers put it."""
    p = (logits.double() / SAMPLING.temperature).softmax(-1)
    assert SAMPLING.top_k is not None
    order = p.argsort(descending=True)[: SAMPLING.top_k]
    kept = p[order] / p[order].sum()
    order = order[(kept.cumsum(0) - kept) < SAMPLING.top_p]
    out = torch.zeros_like(p)
    out[order] = p[order]
    return out.cumsum(0) / out.sum()


SCENES: dict[str, Callable[[str, str], Iterator[Deviation]]] = {
    "alone": alone,
    "batch": batched,
    "late rows": late,
    "shared prefix": shared,
    "intervention": intervened,
    "forks": forked,
    "given": given,
    "crowded": crowded,
    "sampled": sampled,
}
