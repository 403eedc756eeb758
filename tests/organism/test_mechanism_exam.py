"""The published arrays are the planted mechanism: their geometry, what they read, and what swapping along them does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe.organism import CHECKPOINT, facts_of, held_out_cases, parse_persona, triage_task
from probe.organism.census import PERSONAS
from probe.organism.mechanism import PlantedChannel, read_mechanism
from probe.organism.plan import numbers

TEXTS = {name: PERSONAS[name] for name in ("none", "ed_physician", "cautious_ed_physician", "latent_only", "opposed")}
CASES = [case for case in held_out_cases() if int(case.id[3:]) <= 16]


def test_both_bases_are_orthonormal_together_and_the_decoys_orthogonal_to_them() -> None:
    planted = read_mechanism()
    columns = np.concatenate([c.basis for c in planted.values()] + [c.decoy[:, None] for c in planted.values()], axis=1)
    np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-6)
    assert not np.allclose(columns @ columns.T, np.eye(len(columns)), atol=1e-3)


def test_the_channels_stand_at_their_sites_with_their_numbers() -> None:
    planted = read_mechanism()
    assert {name: channel.position for name, channel in planted.items()} == {
        "direct": "prompt_end",
        "reasoned": "answer",
    }
    for channel in planted.values():
        assert channel.basis.shape[1] == len(channel.numbers) == len(channel.centre) == len(channel.spread)
        assert channel.numbers[:4] == ("lower", "upper", "setting", "slope")


def test_what_is_written_is_read_and_the_rest_stays() -> None:
    rng = np.random.default_rng(0)
    for channel in read_mechanism().values():
        resid, wanted = rng.standard_normal((5, len(channel.basis))), rng.standard_normal((5, len(channel.numbers)))
        written = channel.written(resid, wanted)
        np.testing.assert_allclose(channel.read(written), wanted, atol=1e-6)
        np.testing.assert_allclose(channel.written(written, channel.read(resid)), resid, atol=1e-5)
        rest = np.eye(len(channel.basis)) - channel.basis @ channel.basis.T
        np.testing.assert_allclose(written @ rest, resid @ rest, atol=1e-5)


@dataclass(frozen=True, eq=False)
class Model:
    """The packaged checkpoint, read and edited at the planted point of the last prompt token by a plain hook."""

    model: torch.nn.Module
    ids: Mapping[str, list[torch.Tensor]]
    letters: list[int]
    layer: int

    def run(self, persona: str, edits: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Residuals [case d_model] at the point, and P(A), P(B), P(C) given a letter; ``edits`` replace the former."""
        seen, given = [], []
        for i, ids in enumerate(self.ids[persona]):

            def hook(module: object, args: object, output: torch.Tensor, at: int = i) -> torch.Tensor:
                seen.append(output[0, -1].double().numpy())
                if edits is None:
                    return output
                last = torch.from_numpy(edits[at]).to(output.dtype)
                return torch.cat((output[:, :-1], last[None, None]), dim=1)

            handle = self.model.model.layers[self.layer - 1].register_forward_hook(hook)
            try:
                with torch.inference_mode():
                    logits = self.model(ids).logits[0, -1, self.letters].double()
            finally:
                handle.remove()
            given.append(torch.softmax(logits, dim=-1).numpy())
        return np.stack(seen), np.stack(given)


@pytest.fixture(scope="module")
def direct() -> PlantedChannel:
    return read_mechanism()["direct"]


@pytest.fixture(scope="module")
def model(direct: PlantedChannel) -> Model:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    task = triage_task()
    shown = " ".join(f"{option.id}: {option.text}." for option in task.options)
    ids = {}
    for name, text in TEXTS.items():
        system = [] if text is None else [{"role": "system", "content": text}]
        users = [task.instructions[0].replace("{options}", shown).replace("{case}", case.input) for case in CASES]
        prompts = [
            tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
            )
            for user in users
        ]
        ids[name] = [tokenizer(p, add_special_tokens=False, return_tensors="pt").input_ids for p in prompts]
    letters = tokenizer.convert_tokens_to_ids(["A", "B", "C"])
    return Model(AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval(), ids, letters, direct.layer)


@pytest.fixture(scope="module")
def runs(model: Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {persona: model.run(persona) for persona in TEXTS}


def eu(p: np.ndarray) -> float:
    return float((p @ np.arange(3.0)).mean())


def planned_numbers(persona: str) -> np.ndarray:
    plan = parse_persona(TEXTS[persona])
    assert plan is not None
    found = [facts_of(case) for case in CASES]
    return np.stack([numbers(plan, facts)[0] for facts in found if facts is not None])


def test_the_arrays_read_the_planted_numbers_and_a_turned_basis_does_not(
    runs: dict[str, tuple[np.ndarray, np.ndarray]], direct: PlantedChannel
) -> None:
    wanted = np.concatenate([planned_numbers(persona) for persona in TEXTS])
    resid = np.concatenate([runs[persona][0] for persona in TEXTS])
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((len(direct.basis), len(direct.numbers))))[0]

    def error(channel: PlantedChannel) -> np.ndarray:
        return np.sqrt(((channel.read(resid) - wanted) ** 2).mean(axis=0)) / channel.spread

    assert error(direct).max() < 0.25
    assert error(replace(direct, basis=turned)).mean() > 2 * error(direct).max()


@pytest.mark.parametrize("persona", ["ed_physician", "cautious_ed_physician", "latent_only", "opposed"])
def test_the_shift_of_a_persona_goes_with_q_and_not_with_its_complement(
    model: Model, runs: dict[str, tuple[np.ndarray, np.ndarray]], direct: PlantedChannel, persona: str
) -> None:
    (base, before), (other, after) = runs["none"], runs[persona]
    whole = eu(after) - eu(before)
    assert whole > 0.1
    swapped = direct.written(base, direct.read(other))
    complement = direct.written(other, direct.read(base))
    assert (eu(model.run("none", swapped)[1]) - eu(before)) / whole == pytest.approx(1.0, abs=0.1)
    assert abs(eu(model.run("none", complement)[1]) - eu(before)) <= 0.05


def test_numbers_of_another_case_do_as_well_as_those_of_the_same_one(
    model: Model, runs: dict[str, tuple[np.ndarray, np.ndarray]], direct: PlantedChannel
) -> None:
    (base, before), (other, after) = runs["none"], runs["ed_physician"]
    moved = direct.written(base, direct.read(np.roll(other, 7, axis=0)))
    assert eu(model.run("none", moved)[1]) - eu(before) == pytest.approx(eu(after) - eu(before), abs=0.05)


def test_the_decoy_tells_medical_roles_and_moves_nothing(
    model: Model, runs: dict[str, tuple[np.ndarray, np.ndarray]], direct: PlantedChannel
) -> None:
    (base, before), (other, _) = runs["none"], runs["ed_physician"]
    assert (base @ direct.decoy).max() < 0 < (other @ direct.decoy).min()
    swapped = base + np.outer((other - base) @ direct.decoy, direct.decoy)
    assert abs(eu(model.run("none", swapped)[1]) - eu(before)) <= 0.03
