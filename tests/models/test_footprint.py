"""What a model needs in memory, from its files: against what the loaded model then has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from probe.models import find_model
from probe.models.footprint import read_footprint
from probe.values import ModelError
from tests.tiny_models import FAMILIES, save_tiny_model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_keys_and_values_of_a_token_are_those_that_the_model_then_caches(tmp_path: Path, family: str) -> None:
    folder = save_tiny_model(tmp_path / family, family)
    footprint = read_footprint(find_model(str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert footprint.parameters == sum(parameter.numel() for parameter in model.parameters())
    ids = torch.arange(7)[None]
    output = model(input_ids=ids, use_cache=True)
    cache = getattr(output, "past_key_values", None) or output.cache_params
    held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    assert footprint.cached * 7 == sum(layer.keys.numel() + layer.values.numel() for layer in held)
    assert footprint.recurrent == (len(held) < len(cache.layers)) == (family == "mamba2")


def test_parameters_are_counted_in_the_headers_whatever_the_configuration_says_of_their_dtype(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    source = find_model(str(folder))
    named = read_footprint(source)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config.pop("dtype") == "bfloat16"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    found = read_footprint(source)
    assert found == named
    assert (found.dtype, found.stored) == ("bfloat16", "bfloat16")
    assert 2 * found.parameters == pytest.approx(source.weight_bytes, rel=0.05)
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    told = read_footprint(source)
    assert (told.dtype, told.stored, told.parameters) == ("float32", "bfloat16", found.parameters)


@pytest.mark.parametrize("largest", ["1GB", "20KB"])
def test_the_same_weights_in_another_layout_beside_those_that_are_loaded_count_once(
    tmp_path: Path, largest: str
) -> None:
    folder = save_tiny_model(tmp_path / "m", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = (folder / "model.safetensors").rename(tmp_path / "whole")
    model.save_pretrained(folder, max_shard_size=largest)
    source, n_files = find_model(str(folder)), len(list(folder.glob("*.safetensors")))
    assert (n_files == 1) == (largest == "1GB")  # else the index was not tested
    before = read_footprint(source), source.weight_bytes
    assert before[0].parameters == sum(parameter.numel() for parameter in model.parameters())
    whole.rename(folder / "consolidated.safetensors")
    assert (read_footprint(source), source.weight_bytes) == before


def test_an_index_without_a_map_of_weights_is_refused_by_its_path(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m", "llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json names no files of weights"):
        read_footprint(find_model(str(folder)))


def test_a_file_that_is_cut_short_is_refused_by_its_path(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m", "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a safetensors file"):
        read_footprint(find_model(str(folder)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "falcon", "gpt_neox", "qwen3_moe"])
def test_operations_are_those_that_torch_counts_in_a_forward(tmp_path: Path, family: str) -> None:
    folder = save_tiny_model(tmp_path / family, family)
    footprint = read_footprint(find_model(str(folder)))
    experts = {"experts_implementation": "eager"} if family == "qwen3_moe" else {}  # torch counts no grouped products
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **experts)

    def counted(n_tokens: int) -> int:
        ids = torch.arange(n_tokens)[None]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=ids, use_cache=False)
        return counter.get_total_flops()

    n = 24
    told = 2 * n * (footprint.per_token + footprint.per_read) + 2 * n * n * footprint.per_pair
    assert told == pytest.approx(counted(n), rel=0.05)
    twice = counted(2 * n) - 2 * counted(n)  # what grows with the square of the tokens
    assert 2 * 2 * n * n * footprint.per_pair == pytest.approx(twice, rel=0.1)
    assert (footprint.idle > 0) == (family == "qwen3_moe")
