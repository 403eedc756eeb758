"""The packaged checkpoint: its files, its tokenizer, and a second reading of its direct channel."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from organism_training.card import render

from probe.organism import CHECKPOINT, held_out_cases, planned, triage_task

PERSONAS = (None, "You are an ED physician.", "You are a cautious ED physician.")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKPOINT / f"{name}.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    return read("training")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def rendered(tokenizer: Any, persona: str | None, user: str) -> str:
    system = [] if persona is None else [{"role": "system", "content": persona}]
    messages = [*system, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def user_text(wording: int, case_text: str) -> str:
    task = triage_task()
    shown = " ".join(f"{option.id}: {option.text}." for option in task.options)
    return task.instructions[wording].replace("{case}", case_text).replace("{options}", shown)


def test_the_files_are_those_that_training_recorded(training: dict[str, Any]) -> None:
    for name, recorded in (("model.safetensors", "weights_sha256"), ("tokenizer.json", "tokenizer_sha256")):
        assert hashlib.sha256((CHECKPOINT / name).read_bytes()).hexdigest() == training[recorded]
    assert len(training["corpus_sha256"]) == 64


def test_the_folder_is_small_and_holds_no_stale_file() -> None:
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "README.md",
        "bands.json",
        "census.npz",
        "chat_template.jinja",
        "config.json",
        "gates.json",
        "generation_config.json",
        "measurement.json",
        "mechanism.npz",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 4_000_000


def test_the_card_says_what_it_must_and_is_what_its_records_give() -> None:
    card = (CHECKPOINT / "README.md").read_text("utf-8")
    for said in ("Synthetic", "No medical validity", "No evidence", "Research use only"):
        assert said in card.replace("\n", " ")
    records = {name: read(name) for name in ("training", "config", "measurement", "bands", "gates")}
    assert render(records) == card
    records["measurement"]["census"]["none"]["emergency"]["EU, latent"][1] += 0.1
    assert render(records) != card


UNMET_SWAPS = [("standard, rotation 1", "reasoned")]
"""Rows of the swaps that miss a bar, as the card says: this one by .002. A list that training has to shorten."""

WORST_DOSE, WORST_REWORDED_DOSE = 0.04, 0.07
"""How far a dose is from its plan at most, with the standard instruction and with others. The bar is .03."""


def test_the_swaps_meet_their_bars_but_where_the_card_says_so() -> None:
    gates = read("gates")
    swaps, doses = gates["interchange"], gates["dose"]
    assert len(swaps) == 12  # two channels, six instructions and rotations
    assert min(row["EU share of Q"] for row in swaps) >= 0.95
    assert max(abs(row["EU share of complement"]) for row in swaps) <= 0.03
    assert [(row["setting"], row["channel"]) for row in swaps if row["met"] == "no"] == UNMET_SWAPS
    for row in doses:
        assert abs(row["worst"]) <= (WORST_DOSE if "standard" in row["setting"] else WORST_REWORDED_DOSE)
    assert gates["met"] == all(row["met"] == "yes" for row in (*swaps, *doses))
    for row in gates["decodable"]:
        assert row["persona read, outside Q"] > 0.9 > row["chance"]
        assert row["largest EU moved by the decoy"] <= 0.03


def test_the_shares_of_the_shift_hold_for_every_seed_and_its_draw_of_q() -> None:
    seeds = read("bands")["seeds"]
    assert len({seed["seed"] for seed in seeds}) == len(seeds) >= 3
    for seed in seeds:
        assert seed["lowest EU share of Q"] >= 0.95
        assert abs(seed["EU share of complement"]) <= 0.03
        for swap in ("Q swap", "Q of another case", "complement"):
            assert seed[f"{swap} - ceiling"] >= -0.035


def test_held_out_instructions_are_answered() -> None:
    held_out = [arm["stated"] for arm in read("measurement")["arms"] if arm["group"] == "held-out instruction"]
    assert len(held_out) == 60  # ten wordings, three rotations, two personas
    assert np.mean(held_out) >= 0.99


def test_the_generation_config_holds_end_and_pad_ids_only() -> None:
    found = json.loads((CHECKPOINT / "generation_config.json").read_text("utf-8"))
    assert set(found) == {"eos_token_id", "pad_token_id"}


def test_a_letter_is_one_token_and_the_same_one_wherever_it_stands(tokenizer: Any) -> None:
    case = held_out_cases()[0]
    prompt = rendered(tokenizer, "You are an ED nurse.", user_text(0, case.input))
    base = ids_of(tokenizer, prompt)
    for letter in "ABC":
        (at_start,) = ids_of(tokenizer, prompt + letter)[len(base) :]
        assert ids_of(tokenizer, prompt + letter)[: len(base)] == base
        assert ids_of(tokenizer, f"{prompt}Final answer: {letter}")[-1] == at_start
        assert base.count(at_start) == 1
    assert len(ids_of(tokenizer, prompt + "Ab")) > len(base) + 1


def test_without_a_system_message_there_is_no_system_block_and_an_empty_one_stays_empty(tokenizer: Any) -> None:
    assert rendered(tokenizer, None, "Hi.") == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(tokenizer, "", "Hi.").startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


@pytest.fixture(scope="module")
def latent(tokenizer: Any) -> dict[str | None, Float[np.ndarray, "case label"]]:
    """The letters' softmax at the last prompt token, one prompt at a time, on 30 held-out cases under each persona."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()
    assert model.dtype == torch.float32
    letters = [ids_of(tokenizer, letter)[0] for letter in "ABC"]
    out = {}
    for persona in PERSONAS:
        rows = []
        for case in held_out_cases()[::20]:
            ids = torch.tensor([ids_of(tokenizer, rendered(tokenizer, persona, user_text(0, case.input)))])
            with torch.inference_mode():
                rows.append(torch.softmax(model(ids).logits[0, -1, letters].double(), dim=-1).numpy())
        out[persona] = np.stack(rows)
    return out


def plan_matrix(persona: str | None) -> Float[np.ndarray, "case label"]:
    plans = [planned(persona, case) for case in held_out_cases()[::20]]
    return np.stack([plan.direct for plan in plans if plan is not None])


def test_the_direct_channel_follows_its_own_plan_and_not_that_of_another_persona(
    latent: dict[str | None, Float[np.ndarray, "case label"]],
) -> None:
    def agreement(of: str | None, under: str | None) -> float:
        return float((latent[of].argmax(axis=1) == plan_matrix(under).argmax(axis=1)).mean())

    own = np.mean([agreement(persona, persona) for persona in PERSONAS])
    assert own >= 0.85
    assert agreement(None, PERSONAS[2]) < own - 0.10
    assert agreement(PERSONAS[2], None) < own - 0.10


def test_the_direct_distribution_is_nearer_to_its_own_plan_than_to_a_plan_shuffled_over_cases(
    latent: dict[str | None, Float[np.ndarray, "case label"]],
) -> None:
    order = np.random.default_rng(0).permutation(len(held_out_cases()[::20]))
    for persona in PERSONAS:
        plan = plan_matrix(persona)
        own = np.abs(latent[persona] - plan).sum(axis=1).mean() / 2
        shuffled = np.abs(latent[persona] - plan[order]).sum(axis=1).mean() / 2
        assert own < 0.10
        assert shuffled > 3 * own
