"""Models divided between two processes: every stream is whole, the same bits in both, and what one process reads."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probe.engines import Listener, Receipt, RunRefused, Ticket, Work, supervise
from probe.engines.groups import together
from probe.engines.processes import Processes
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.spread import Spread
from probe.models.tensor_parallel import Ranks, require_plan, whole_streams
from probe.organism import CHECKPOINT
from probe.values import ModelError
from tests.capture.architectures import ARCHITECTURES, backend, folder_of, source_of
from tests.engines.engine_listener import Heard
from tests.models.backend_parity import LIMIT, off
from tests.models.divided_models import found, loaded

ROOT = Path(__file__).parents[2]
WITHOUT_PLAN = ("bloom", "falcon", "gpt2", "gpt_oss", "mamba2", "opt", "stablelm")
DIVIDED = tuple(name for name in ARCHITECTURES if name not in WITHOUT_PLAN)
WHOLE_HEADS = ("olmo2", "olmo3", "phi3")
HEADLESS = ("qwen3_next",)
WHOLE_EMBEDDING = ("gpt_neox",)


def read_by_two(folder: Path, models: list[Path], task: str = "read", *more: object) -> dict[str, list[object]]:
    """Let two processes read models; what the first one tells of each."""
    told: dict[str, list[object]] = {}
    work = together(Work(f"tests.models.divided_models:{task}", json.dumps([str(folder), 2, *more])), 2, threads=1)
    pool = Processes(work, [{"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *sys.path)))}])
    heard = Heard()

    def receipt(_ticket: Ticket, ended: Receipt) -> None:
        told.update(ended.facts)

    try:
        tickets = [Ticket(k, (str(model),)) for k, model in enumerate(models)]
        supervise(pool, tickets, Listener(receipt, heard.listener.lost, heard.listener.notice))
    finally:
        pool.close()
    assert heard.notices == []
    return told


@pytest.mark.slow
def test_what_two_processes_read_of_every_architecture_is_what_one_reads(tmp_path: Path) -> None:
    told = read_by_two(tmp_path, [CHECKPOINT, *(folder_of(name) for name in DIVIDED)])
    assert len(told) == 1 + len(DIVIDED) >= 20
    for name, (processes, heads, caching, held) in told.items():
        alone = loaded(CHECKPOINT) if name == CHECKPOINT.name else backend(name, "hf")
        one, first, second = found(alone), *(load_file(tmp_path / f"{name}.{k}.safetensors") for k in (0, 1))
        assert set(one) == set(first) == set(second), name
        assert {"plain.logits", "plain.resid", "edited.resid", "readout.unembed.weight"} <= set(one), name
        for key, value in one.items():
            assert torch.equal(first[key], second[key]), (name, key)
            assert not bool(value.any()) or off(first[key], value) <= LIMIT, (name, key)
        assert off(first["edited.logits"], first["plain.logits"]) > 1e-3, name
        whole = name in WHOLE_HEADS + HEADLESS
        assert (processes, caching) == (2, alone.facts.caching)
        assert held < (0.7 if name in WHOLE_EMBEDDING else 0.52), name
        assert (heads == "its heads are divided between 2 processes") != whole, name


@pytest.mark.slow
def test_a_model_that_is_divided_wrongly_is_refused_and_agrees_with_itself_in_everything_else(tmp_path: Path) -> None:
    task = "read_wrongly_divided"
    with pytest.raises(RunRefused, match="the unembedding of PhiForCausalLM is not what its parts make up"):
        read_by_two(tmp_path, [folder_of("phi")], task, "unembedding", True)
    with pytest.raises(RunRefused, match="block 0 of PhiForCausalLM is not what its parts make up"):
        read_by_two(tmp_path, [folder_of("phi")], task, "blocks", True)
    assert list(read_by_two(tmp_path, [folder_of("phi")], task, "blocks", False)) == ["phi"]  # no other check sees it
    wrong = load_file(tmp_path / "phi.0.safetensors")
    assert off(wrong["plain.resid"], found(backend("phi", "hf"))["plain.resid"]) > 0.01


@pytest.mark.slow
def test_a_model_without_all_of_its_weights_is_refused_as_by_one_process(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder_of("llama").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}), "utf-8")
    with pytest.raises(RunRefused, match=r"lacks weights that its config\.json asks for"):
        read_by_two(tmp_path, [copy])


@pytest.mark.parametrize("name", WITHOUT_PLAN)
def test_a_model_without_a_plan_for_its_blocks_is_refused_and_told_what_serves_it(name: str) -> None:
    with pytest.raises(ModelError, match=r"no plan to divide the blocks of .* device_map: auto"):
        require_plan(source_of(name), 2)


@pytest.mark.parametrize("name", DIVIDED)
def test_the_other_architectures_have_a_plan(name: str) -> None:
    require_plan(source_of(name), 2)


def test_heads_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has 4 heads, which 3 processes cannot share evenly"):
        require_plan(source_of("llama"), 3)
    with pytest.raises(ModelError, match="has 2 heads of keys and values, which 4 processes cannot share"):
        require_plan(source_of("llama"), 4)
    require_plan(source_of("phi3"), 4)  # its attention is computed by all, and its weights are gathered


def test_a_process_that_is_alone_cannot_hold_a_part_of_a_model() -> None:
    source = find_model("organism")
    with pytest.raises(ModelError, match=r"only the workers of run, capture and swap are, .* device_map: auto"):
        HFBackend.load(source, dtype="auto", device="cpu", attention=None, spread=Spread(tensor_parallel=2))
    alone = HFBackend.load(source, dtype="auto", device="cpu", attention=None, spread=Spread(tensor_parallel=1))
    assert alone.facts.tensor_parallel == 1


def test_of_a_model_that_one_process_holds_everything_is_whole() -> None:
    alone = loaded(CHECKPOINT)
    assert isinstance(alone, HFBackend)
    assert whole_streams(alone.streams, alone.blocks, 1) is alone.streams
    assert whole_streams(alone.streams, alone.blocks, 2) is alone.streams  # these are whole, however many there are
    ranks = Ranks(1, alone.facts.device)
    assert ranks.first_says([True, False]) == [True, False]
    ranks.require_same(b"\x01", "anything")
