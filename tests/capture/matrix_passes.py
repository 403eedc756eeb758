"""Whole passes of the engine against the reference: answers, sites, forks, given texts, interventions.

Knows ``run_pass``. Each scene runs rows in another way and compares all that each of them gave.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from probe.capture import PassInput, PassSettings, Sampling, prefixes, run_pass, slots, teacher_forcing, waiting
from probe.capture.forks import Fork
from probe.capture.raw_rows import RawRow
from probe.capture.sampling import row_generator
from probe.models.points import HookPoint
from probe.prompts import Reopening
from probe.values import EDIT_POSITIONS, OPERATORS, STREAMS, Gate, Intervention
from tests.capture.architectures import END_IDS, backend, prompts
from tests.capture.matrix_forwards import Deviation, all_points
from tests.capture.matrix_rows import (
    EXACT,
    LABELS,
    LETTERS,
    N_NEW,
    Tally,
    answer_deviations,
    fork_deviations,
    site_deviations,
    wanted_states,
)
from tests.tiny_models import VOCABULARY

POSITIONS = ("prompt_end", "persona_end", "case_mean", "answer", "response_mean")
SAMPLING = Sampling(temperature=1.3, top_p=0.9, top_k=50)


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
    """An operator about as large as what it acts on; of every third direction with a gate that is open at some tokens,
    and where it adds, added in units of the norm."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {point} {operator} {position}".encode()))
    size = float(wanted_states(name, row(prompts(name)[0]), prompts(name)[0]).values[point.stream, point.layer].std())
    vector = (size * rng.normal(size=width)).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(width, 2)))[0].T.astype(np.float32)
    takes_vector, bounded = operator in ("add", "patch"), operator in ("set", "cap")
    relative = operator == "add" and point.layer % 2 == 1
    return Intervention(
        point.layer,
        operator,
        vector / (size * width) if relative else vector if takes_vector else None,
        None if takes_vector else basis,
        np.array([size, -size] if operator == "set" else [-size, -2 * size], np.float32) if bounded else None,
        position,
        point.stream,
        relative,
        Gate(rng.normal(size=width).astype(np.float32), 0.0) if rng.random() < 1 / 3 else None,
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
        points = [(HookPoint("resid", k % (n_layers + 1)), OPERATORS[k % 5])]
        if k % 2 and streams:
            points.append((HookPoint(streams[k // 2 % len(streams)], k % n_layers), OPERATORS[(k // 2) % 5]))
        elif k % 2:
            points.append((points[0][0], OPERATORS[(k + 2) % 5]))
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
