"""A sweep gives what plain transformers gives under the same edits, however little of a forward it runs again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from probe.capture import PassInput, sweep, sweep_resumed, token_reads
from probe.capture.sweep_items import Operator
from probe.models.hf import HFBackend
from probe.models.points import HookPoint
from probe.models.protocol import Backend
from probe.prompts import LabelTokens
from probe.values import Intervention, ModelError, ProbeError, SweepRead, TokenPatch
from tests.capture.architectures import ARCHITECTURES, WIDTH, backend, prompts
from tests.capture.matrix_forwards import LOGP_LIMIT, SITE_LIMIT
from tests.capture.matrix_rows import LABELS, acting
from tests.capture.reference import EditFunction, States, states_of

RESUMES_NOT = {"qwen3_next", "mamba2"}
ALIBI = {"bloom"}
"""Its positions are a bias of another form than the mask's: versions of a token do not stand abreast."""
FAST = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "mistral_window", "gpt_oss", "falcon", "bloom")
FAST += ("qwen3_next", "mamba2")
KL_LIMIT = 1e-5
"""What the rounding of fp32 logits leaves of a divergence, in nats."""
POINTS = (HookPoint("resid", 0), HookPoint("resid", 2), HookPoint("resid", 3))


def row(tokens: Sequence[int], **more: object) -> PassInput:
    base = PassInput(tuple(tokens), 3, (6, len(tokens) - 3), LABELS, persona_tokens=(1, 4))
    return replace(base, **more)  # type: ignore[arg-type]


@cache
def plain_states(name: str, ids: tuple[int, ...]) -> States:
    return states_of(name, ids)


def states(name: str, one: PassInput, arm: Sequence[Operator]) -> States:
    """The reference under an arm of interventions and patches."""
    ids = (*one.token_ids, *(one.given or ()))
    if not arm:
        return plain_states(name, ids)
    edits: dict[tuple[str, int], list[EditFunction]] = {}
    for each in sorted(arm, key=lambda each: isinstance(each, Intervention)):
        assert isinstance(each, Intervention | TokenPatch)
        own = acting(each, one, len(ids)) if isinstance(each, Intervention) else patching(each)
        edits.setdefault((each.stream, each.layer), []).append(own)
    return states_of(name, ids, edits)


def patching(patch: TokenPatch) -> EditFunction:
    def put(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for token, value in zip(patch.tokens, torch.from_numpy(patch.values), strict=True):
            x[token, slice(*patch.columns) if patch.columns else slice(None)] = value
        return x

    return put


def label_logp(logits: torch.Tensor, labels: LabelTokens = LABELS) -> np.ndarray:
    logp = logits.double().log_softmax(-1)
    return np.array([float(logp[list(ids)].logsumexp(0)) for ids in labels.ids])


def over_labels(logits: torch.Tensor) -> np.ndarray:
    """Probabilities of the labels and of everything else."""
    p = logits.double().softmax(-1)
    labels = [float(p[list(ids)].sum()) for ids in LABELS.ids]
    others = [k for k in range(len(p)) if not any(k in ids for ids in LABELS.ids)]
    return np.array([*labels, float(p[others].sum())])


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    a, b = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((a.exp() * (a - b)).sum())


def arms_of(name: str, one: PassInput, other: PassInput) -> list[tuple[Operator, ...]]:
    """Edits at the last token and before it, in the residual and inside of blocks, patches among them."""
    facts, rng = backend(name, "hf").facts, np.random.default_rng(len(one.token_ids))
    vector = rng.normal(size=WIDTH).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T.astype(np.float32)
    streams = tuple(stream for stream in ("attn_out", "mlp_out", "head_out") if stream in facts.widths)
    tokens = (2, 5, 9)
    donor = token_reads(backend(name, "hf"), [other], tuple(HookPoint(s, 1) for s in ("resid", *streams)), [tokens])[0]
    arms: list[tuple[Operator, ...]] = [()]
    for layer in range(4):
        arms += [(Intervention(layer, "add", size * vector, position="prompt_end"),) for size in (0.5, 2.0)]
        arms.append((Intervention(layer, "ablate", basis=basis, position="prompt_end"),))
        arms.append((Intervention(layer, "add", vector, position="case"),))
    arms.append((Intervention(1, "set", basis=basis, coordinates=np.float32([1, -1]), position="all"),))
    arms.append((Intervention(2, "add", vector, position="persona"), Intervention(1, "add", vector, position="case")))
    arms += [(TokenPatch(stream, 1, tokens, donor[stream, 1]),) for stream in ("resid", *streams)]
    arms += [(TokenPatch(s, 1, (one.length - 1,), donor[s, 1][:1]),) for s in ("resid", *streams)]
    if "head_out" in streams:
        arms.append((TokenPatch("head_out", 1, tokens, donor["head_out", 1][:, 8:12], (8, 12)),))
    both = (Intervention(1, "add", vector, position="all"), TokenPatch("resid", 1, tokens, donor["resid", 1]))
    return [*arms, both]


def check(name: str, one: PassInput, arm: Sequence[Operator], read: SweepRead) -> None:
    """A read against the reference: labels, values, divergence from the row unedited."""
    wanted, plain = states(name, one, arm), states(name, one, ())
    place = f"{name}, row {read.row}, arm {read.arm}"
    np.testing.assert_allclose(read.labels.logp, label_logp(wanted.logits[-1]), rtol=0, atol=LOGP_LIMIT, err_msg=place)
    assert read.kl == pytest.approx(divergence(wanted.logits[-1], plain.logits[-1]), rel=1e-3, abs=KL_LIMIT), place
    p, q = over_labels(wanted.logits[-1]), over_labels(plain.logits[-1])
    assert read.kl_labels == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-3, abs=KL_LIMIT), place
    for point, value in read.values.items():
        value_wanted = wanted.values[point][-1].numpy()
        off = np.abs(value - value_wanted).max() / np.abs(value_wanted).max()
        assert off <= SITE_LIMIT, (place, point)


@pytest.mark.parametrize(
    "name", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in ARCHITECTURES]
)
def test_every_arm_reads_what_plain_transformers_gives_under_its_edits(name: str) -> None:
    rows = [row(tokens) for tokens in prompts(name, (23, 14))]
    arms = [arms_of(name, one, rows[k - 1]) for k, one in enumerate(rows)]
    reads = list(sweep(backend(name, "hf"), rows, arms, points=POINTS, batch_size=4))
    assert [(each.row, each.arm) for each in reads] == [
        (r, arm) for r, own in enumerate(arms) for arm in (None, *range(len(own)))
    ]
    for read in reads:
        check(name, rows[read.row], () if read.arm is None else arms[read.row][read.arm], read)
    assert max(read.kl for read in reads) > 0.1  # the edits do something
    alone = sweep(backend(name, "hf"), rows, arms, batch_size=1)  # without pads masks are others, or none
    whole = sweep(backend(name, "hf"), rows, arms, resume=False)
    for one, *others in zip(reads, alone, whole, strict=True):
        for other in others:
            np.testing.assert_allclose(one.labels.logp, other.labels.logp, rtol=0, atol=LOGP_LIMIT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_of_keys_and_values_are_resumed_and_those_with_states_are_not(name: str) -> None:
    model = backend(name, "hf")
    assert isinstance(model, HFBackend)
    assert (model.resumer is None) == (name in RESUMES_NOT)
    if model.resumer is not None:
        assert model.resumer.abreast == (name not in ALIBI)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "bloom"])
@pytest.mark.parametrize("first", [12, 4], ids=["in the case", "in the beginning"])
def test_what_rows_begin_with_is_run_once(name: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other lengths share their first tokens; edits begin after them, or among them."""
    monkeypatch.setattr(sweep_resumed, "WORTH", 1)
    rows = [row(tokens, case_tokens=(first, 14)) for tokens in prompts(name, (23, 17, 31, 17), shared=11)]
    vector = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    arms: list[list[tuple[Operator, ...]]] = [
        [(Intervention(1, "add", vector, position=position),) for position in ("prompt_end", "case")] for _ in rows
    ]
    for some in (arms, [own[:1] for own in arms]):
        for read in sweep(backend(name, "hf"), rows, some, points=POINTS):
            check(name, rows[read.row], () if read.arm is None else some[read.row][read.arm], read)


def test_tokens_that_rows_share_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend("llama", "hf")
    rows = [row(tokens) for tokens in prompts("llama", (23, 23, 23), shared=11)]
    fed = []
    for worth in (1, 1000):
        monkeypatch.setattr(sweep_resumed, "WORTH", worth)
        counts = [0, 0, 0]
        with counting(model, counts):
            list(sweep(model, rows, [[()]] * 3))
        fed.append(counts[0])
    assert fed == [11 + 3 * 12, 3 * 23]


@contextmanager
def counting(model: Backend, counts: list[int]) -> Iterator[None]:
    """Tokens that each block is given."""
    assert isinstance(model, HFBackend) and model.resumer is not None
    with ExitStack() as hooks:
        for b, block in enumerate(model.blocks):
            hooks.callback(block.register_forward_pre_hook(partial(_count, counts, b)).remove)
        yield


def _count(counts: list[int], b: int, _module: object, given: tuple[torch.Tensor, ...]) -> None:
    counts[b] += given[0].shape[:2].numel()


@pytest.mark.parametrize("kind", ["transformer-lens", "nnsight"])
def test_the_other_backends_read_the_same(kind: str) -> None:
    rows = [row(tokens) for tokens in prompts("llama", (23, 14))]
    arms = [arms_of("llama", one, rows[k - 1]) for k, one in enumerate(rows)]
    for read in sweep(backend("llama", kind), rows, arms, points=POINTS):
        check("llama", rows[read.row], () if read.arm is None else arms[read.row][read.arm], read)


def test_only_blocks_above_an_edit_and_tokens_from_it_on_are_run_again() -> None:
    model = backend("llama", "hf")
    rows = [row(tokens) for tokens in prompts("llama", (20, 20))]
    vector = np.ones(WIDTH, np.float32)

    def tokens_run(arms: list[tuple[Operator, ...]]) -> list[int]:
        """Tokens through each block beyond those of the rows themselves."""
        counts = [-sum(one.length for one in rows)] * 3
        with counting(model, counts):
            assert len(list(sweep(model, rows, [arms, arms]))) == 2 * (1 + len(arms))
        return counts

    ends = [(Intervention(2, "add", k * vector, position="prompt_end"),) for k in (1, 2, 3)]
    # A hook of ours on a block that stands aside still sees the call, with the one embedded token of each row.
    assert tokens_run(list(ends))[2:] == [2 * 3]
    cases = [(Intervention(1, "add", k * vector, position="case"),) for k in (1, 2, 3)]
    assert tokens_run(list(cases))[1:] == [2 * 3 * 14] * 2
    assert tokens_run([(Intervention(3, "add", vector, position="prompt"),)])[2:] == [2 * 20]  # stood in, not run
    assert tokens_run([()]) == [0, 0, 0]


def test_the_place_is_the_end_of_what_is_given_and_labels_are_read_there() -> None:
    others = LabelTokens(("A", "B", "C"), ((7,), (8,), (9,)))
    given = ((5, 60), (), (70,))
    tokens = prompts("llama", (23, 14, 31))
    rows = [row(ids, given=more, labels=others) for ids, more in zip(tokens, given, strict=True)]
    vector = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    arms: list[list[tuple[Operator, ...]]] = [
        [(Intervention(1, "add", vector, position=position),) for position in ("prompt_end", "response", "all")]
        for _ in rows
    ]
    for read in sweep(backend("llama", "hf"), rows, arms):
        logits = states("llama", rows[read.row], () if read.arm is None else arms[read.row][read.arm]).logits[-1]
        np.testing.assert_allclose(read.labels.logp, label_logp(logits, others), atol=LOGP_LIMIT)
        if rows[read.row].given == () and read.arm == 1:
            assert read.kl == 0  # nothing is generated that it could act on


def test_divergences_to_other_rows_are_those_to_their_unedited_distributions() -> None:
    rows = [row(tokens) for tokens in prompts("gpt2", (18, 14, 21, 16))]
    vector = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    arms: list[list[tuple[Operator, ...]]] = [[(Intervention(2, "add", vector, position="newest"),)]] * 4
    against = [(3, 0), (), (0, 1), (2,)]  # rows that come later, that are gone by then, and a row itself
    logits = [states("gpt2", one, ()).logits[-1] for one in rows]
    for read in sweep(backend("gpt2", "hf"), rows, arms, against=against, batch_size=1):
        own = states("gpt2", rows[read.row], () if read.arm is None else arms[0][0]).logits[-1]
        wanted = [divergence(own, logits[k]) for k in against[read.row]]
        assert read.kl_to == pytest.approx(wanted, rel=1e-3, abs=KL_LIMIT)
        p, references = over_labels(own), [over_labels(logits[k]) for k in against[read.row]]
        wanted = [float((p * np.log(p / q)).sum()) for q in references]
        assert read.kl_labels_to == pytest.approx(wanted, rel=1e-3, abs=KL_LIMIT)


@pytest.mark.parametrize(
    ("arms", "more", "words"),
    [
        ([], {}, "one list of arms"),
        ([[()]], {"against": [(7,)]}, "compared with row 7"),
        ([[(TokenPatch("resid", 1, (40,), np.zeros((1, WIDTH), np.float32)),)]], {}, "0 to 13; found 40"),
        ([[(TokenPatch("resid", 1, (3,), np.zeros((1, 5), np.float32)),)]], {}, "32 wide"),
        ([[(TokenPatch("resid", 9, (3,), np.zeros((1, WIDTH), np.float32)),)]], {}, "layers 0 to 3"),
        ([[()]], {"points": (HookPoint("nothing", 1),)}, "a stream is one of"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    arms: list[list[tuple[Operator, ...]]], more: dict[str, object], words: str
) -> None:
    one = row(prompts("llama")[1])
    with pytest.raises((ProbeError, ModelError), match=words):
        next(sweep(backend("llama", "hf"), [one], arms, **more))  # type: ignore[arg-type]
    assert len(list(sweep(backend("llama", "hf"), [one], [[()]]))) == 2


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (row(range(5, 19), interventions=(Intervention(1, "add", np.ones(WIDTH, np.float32)),)), "has interventions"),
        (row(range(5, 19), labels=LabelTokens(("A", "B"), ((), (3,)), (((4, 5),), ()))), "labels of several"),
        (row([5] * 200), "context of 128 tokens"),
    ],
)
def test_rows_that_a_sweep_cannot_read_are_refused(one: PassInput, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        next(sweep(backend("llama", "hf"), [one], [[()]]))
