"""Blocks that lie on several devices give, bit for bit, what they give on one. The devices are stood in for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from probe.capture import PassInput, PassSettings, Sampling, key_value_reads, run_pass, sweep, token_reads, waiting
from probe.models.check import check_backend
from probe.models.edits import Edit
from probe.models.hf import HFBackend
from probe.models.hooks import Recorded
from probe.models.layers import find_blocks
from probe.models.points import HookPoint
from probe.models.protocol import Reads
from probe.models.readout import find_readout
from probe.values import KVPatch, TokenPatch
from tests.capture.architectures import ARCHITECTURES, build, prompts
from tests.capture.matrix_forwards import all_points
from tests.capture.matrix_passes import POSITIONS, crowded_rows, intervention_rows, narrow
from tests.capture.matrix_rows import LABELS, LETTERS, N_NEW
from tests.stand_in_devices import laid_on, standing_in

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="devices that are there cannot be stood in for")

SEPARATE, BACK = ("cuda:0", "cuda:1", "cuda:2"), ("cuda:0", "cuda:1", "cuda:0")
"""Where blocks lie. A tied unembedding lies with the embedding, so the last block of such a model lies there too: what
is brought there from another device stands otherwise in memory, and the product rounds otherwise."""
FAST = ("gemma2", "qwen3_next")
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


def own_model(name: str) -> Any:
    model = copy.deepcopy(build(name)[0])
    if "experts" in "".join(key for key, _ in model.named_modules()):
        model.set_experts_implementation("eager")  # the others ask the device itself what it can do
    return model


@contextmanager
def spread(name: str, places: tuple[str, ...] | None = None) -> Iterator[HFBackend]:
    """The model over the devices, while there are these."""
    model = own_model(name)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    places = places or (BACK if tied else SEPARATE)
    with torch.inference_mode(), standing_in():
        yield HFBackend(laid_on(model, find_blocks(model), places))


def plain_values(found: Any) -> Any:
    """Nested values with every tensor on the CPU, as bytes with shapes: NaN equals itself."""
    if isinstance(found, torch.Tensor):
        found = found.cpu().float().numpy()
    if isinstance(found, np.ndarray):
        return found.shape, found.tobytes()
    if is_dataclass(found):
        return {each.name: plain_values(getattr(found, each.name)) for each in fields(found)}
    if isinstance(found, dict):
        return {key: plain_values(value) for key, value in found.items()}
    return [plain_values(each) for each in found] if isinstance(found, list | tuple) else found


def test_what_stands_in_refuses_what_devices_refuse_and_computes_the_rest() -> None:
    with standing_in():
        x, there = torch.arange(6.0, device="cuda:0").reshape(2, 3), torch.ones(2, 3, device="cuda:1")
        refused = [
            lambda: x + there,
            lambda: x + torch.ones(2, 3),
            lambda: x[torch.tensor([0])],
            lambda: x[torch.tensor([0], device="cuda:1")],
            lambda: torch.where(there > 0, x, x),
            lambda: torch.cat([x, there]),
            lambda: x.add_(there),
            lambda: x.__setitem__([0, 1], there),
            lambda: x * there.sum(),
        ]
        for meeting in refused:
            with pytest.raises(RuntimeError, match="meet in"):
                meeting()
        x[0] = there[0]  # a copy
        assert (x + there.to("cuda:0") + torch.tensor(1.0)).device == torch.device("cuda:0")
        assert x.tolist() == [[1.0, 1.0, 1.0], [3.0, 4.0, 5.0]]
        assert torch.equal(x.cpu(), torch.tensor([[1.0, 1.0, 1.0], [3.0, 4.0, 5.0]])) and type(x.cpu()) is torch.Tensor


@pytest.mark.parametrize("name", EVERY)
def test_a_model_over_three_devices_is_checked_read_and_resumed_as_on_one(name: str) -> None:
    plain = HFBackend(own_model(name))
    with spread(name) as backend:
        assert backend.facts.device == torch.device("cuda:0")
        assert backend.facts.device_map is not None and backend.facts.device_map.blocks in (SEPARATE, BACK)
        check_backend(backend, backend.model)
        readout = plain_values(find_readout(backend, (1, 5, 9)))
        resumed = backend.resumer and backend.resumer.abreast
    assert backend.facts.widths == plain.facts.widths and backend.facts.missing == plain.facts.missing
    assert readout == plain_values(find_readout(plain, (1, 5, 9)))
    assert resumed == (plain.resumer and plain.resumer.abreast)


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen3", "mamba2"))]
)
@pytest.mark.parametrize("places", [("cuda:0", "cpu", "cuda:1"), ("cuda:0", "cuda:0", "cpu")])
def test_blocks_in_main_memory_are_computed_on_the_first_device_and_give_the_same(
    name: str, places: tuple[str, ...]
) -> None:
    """The second time with what follows the last block: norm and unembedding are fetched too, and the readout read."""
    plain = HFBackend(own_model(name))
    rows = [PassInput(ids, 3, (6, len(ids) - 3), LABELS, persona_tokens=(1, 4)) for ids in prompts(name)]
    settings = PassSettings(all_points(plain), POSITIONS, N_NEW)
    with spread(name, places) as backend:
        assert backend.facts.device_map is not None and backend.facts.device_map.fetched["cpu"] > 0
        assert {weight.device.type for weight in backend.model.parameters()} == {"cuda", "meta"}
        check_backend(backend, backend.model)
        found = run_pass(backend, rows, settings, LETTERS, batch_size=5)
        readout = plain_values(find_readout(backend, (1, 5, 9)))
    assert plain_values(found) == plain_values(run_pass(plain, rows, settings, LETTERS, batch_size=5))
    assert readout == plain_values(find_readout(plain, (1, 5, 9)))


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("llama", Sampling(temperature=1.3, top_p=0.9, top_k=50)),
        *(pytest.param(name, None, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES),
    ],
)
def test_a_pass_over_three_devices_gives_the_rows_of_one_bit_for_bit(name: str, sampling: Sampling | None) -> None:
    """Rows of every kind: all streams at all sites, answers, steering by every operator, forks, given answers."""
    plain = HFBackend(own_model(name))
    settings = PassSettings(all_points(plain), POSITIONS, N_NEW, sampling)
    rows = crowded_rows(name, "hf")
    alike = {"cpu": 50, "cuda": 50}  # else other rows would share a forward
    with narrow(), patch.object(waiting, "_FED_AT_ONCE", alike):
        wanted = run_pass(plain, rows, settings, LETTERS, batch_size=3)
        with spread(name) as backend:
            found = run_pass(backend, rows, settings, LETTERS, batch_size=3)
            assert {value.device for row in found for value in row.values.values()} == {backend.facts.device}
    assert plain_values(found) == plain_values(wanted)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_sweep_over_three_devices_gives_the_reads_of_one(name: str, resume: bool) -> None:
    plain = HFBackend(own_model(name))
    one, other = [PassInput(ids, 3, (6, 17), LABELS, persona_tokens=(1, 4)) for ids in prompts(name, (20, 20))]
    arms = [
        *[each.interventions for each in intervention_rows(name, "hf") if each.interventions][:12],
        *arms_of_donor(plain, one, other),
    ]

    def reads(backend: HFBackend) -> list[Any]:
        points = (HookPoint("resid", 1), HookPoint("attn_out", 2))
        return plain_values(list(sweep(backend, [one], [arms], points=points, batch_size=3, resume=resume)))

    with spread(name) as backend:
        found = reads(backend)
    assert found == reads(plain)
    assert len({str(each["labels"]) for each in found}) > len(arms) // 2  # the arms differ


def arms_of_donor(plain: HFBackend, one: PassInput, other: PassInput) -> list[tuple[Any, ...]]:
    """Another row's activations and its keys and values, put into this one."""
    at = HookPoint("resid", 1)
    values = token_reads(plain, [other], (at,), [(4, 5)])[0]["resid", 1]
    held = key_value_reads(plain, [other], [(2, 3)])[0]
    kv = KVPatch((0, 2), (2, 3), (held.keys[0], held.keys[2]), (held.values[0], held.values[2]), 6)
    return [(TokenPatch("resid", 1, (4, 5), values),), (kv,)]


def test_donors_over_three_devices_give_the_activations_and_keys_of_one() -> None:
    plain = HFBackend(own_model("llama"))
    rows = [PassInput(ids, None, None, LABELS) for ids in prompts("llama", (15, 9))]
    points = all_points(plain)
    with spread("llama") as backend:
        found = token_reads(backend, rows, points, [(0, 14), (8,)]), key_value_reads(backend, rows, [(0, 14), (8,)])
    wanted = token_reads(plain, rows, points, [(0, 14), (8,)]), key_value_reads(plain, rows, [(0, 14), (8,)])
    assert plain_values(found) == plain_values(wanted)


def read_and_edit(backend: HFBackend) -> None:
    """Every point, and then only points of the last block, come back where the ids are."""
    ids = torch.tensor([prompts("llama")[0]], device=backend.facts.device)
    columns = torch.tensor([[3, 5]], device=ids.device)
    where = torch.ones_like(ids, dtype=torch.bool)
    edit = Edit(HookPoint("resid_mid", 2), "add", where, vector=torch.ones(1, 32, device=ids.device))
    reads = Reads(all_points(backend), columns, columns[:, None], logits_at=columns)
    last = (HookPoint("resid", 3), HookPoint("mlp_out", 2))
    for asked in (reads, replace(reads, points=last)):
        found = backend.forward(ids, torch.ones_like(ids), asked, edits=[edit])
        own = (found.logits, *found.values.values(), *found.means.values())
        assert {value.device for value in own} == {ids.device}


@pytest.mark.parametrize(
    ("owner", "name", "unmoved"),
    [
        (Edit, "on", lambda edit, device: edit),
        (Recorded, "_index_on", lambda own, device: (0 * own._columns, own._columns)),
    ],
)
def test_what_stays_on_the_device_of_the_ids_is_refused_elsewhere(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, unmoved: Any
) -> None:
    with spread("llama") as backend:
        read_and_edit(backend)
        monkeypatch.setattr(owner, name, unmoved)
        with pytest.raises((RuntimeError, RecursionError), match=r"meet in|recursion"):
            read_and_edit(backend)
    with spread("llama", ("cuda:0",) * 3) as backend:
        read_and_edit(backend)  # on one device nothing has to be moved
