"""An intervention acts at the tokens that its position rule names in a real prompt, and at none beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from probe.capture import Job, prefixes
from probe.values import EDIT_POSITIONS, CellRecord, Intervention, Recipe
from tests.capture.site_scene import PERSONAS, SiteScene
from tests.tiny_models import CHATML, NO_SYSTEM

LAYER = 1
PERSONA = PERSONAS[0].wordings[0]


@pytest.fixture(scope="module", params=[CHATML, NO_SYSTEM], ids=["system role", "no system role"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SiteScene:
    return SiteScene(tmp_path_factory.mktemp("model"), template=request.param)


def spans(scene: SiteScene, job: Job) -> list[tuple[int, int]]:
    """The characters of each token, from what the tokens up to it decode to."""
    ids = job.prompt.token_ids
    ends = [len(scene.tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) for n in range(len(ids) + 1)]
    assert ends[-1] == len(job.prompt.text)
    return list(pairwise(ends))


def named_tokens(scene: SiteScene, job: Job, n_new: int) -> dict[str, set[int]]:
    """The tokens of each position rule, from the text of the prompt alone."""
    text, tokens = job.prompt.text, spans(scene, job)
    case = next(each.input for each in scene.cases if each.id == job.row.cell.case)
    assert text.count(PERSONA) == text.count(case) == 1
    at, there, n = text.index(PERSONA), text.index(case), len(tokens)
    persona = {i for i, (a, b) in enumerate(tokens) if a < at + len(PERSONA) and b > at}
    return {
        "all": set(range(n + n_new)),
        "prompt": set(range(n)),
        "response": set(range(n, n + n_new)),
        "prompt_end": {n - 1},
        "persona": persona,
        "persona_end": {max(persona)},
        "case": {i for i, (a, b) in enumerate(tokens) if there <= a and b <= there + len(case)},
        "newest": set(range(n - 1, n + n_new)),
    }


def plain(scene: SiteScene, ids: tuple[int, ...], vector: np.ndarray, acting: set[int]) -> tuple[Any, Any]:
    """Every residual point ``[point, pos, d_model]`` and the logits of one forward with a hook of our own."""
    points: list[torch.Tensor] = []
    where = [i for i in range(len(ids)) if i in acting]

    def before(layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> Any:
            hidden = args[0].clone()
            if layer == LAYER:
                hidden[0, where] += torch.from_numpy(vector)
            points.append(hidden[0])
            return (hidden, *args[1:])

        return hook

    blocks = scene.backend.model.model.layers
    with ExitStack() as hooks, torch.no_grad():
        for layer, block in enumerate(blocks):
            hooks.callback(block.register_forward_pre_hook(before(layer)).remove)
        hooks.callback(blocks[-1].register_forward_hook(lambda _m, _a, output: points.append(output[0])).remove)
        logits = scene.backend.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.stack(points).numpy(), logits


def edited(
    scene: SiteScene, vector: np.ndarray, condition: dict[str, Any]
) -> Iterator[tuple[str, Job, CellRecord, tuple[int, ...]]]:
    """Every rule on two cases, all in one pass."""
    jobs = []
    recipes = [Recipe(name, (Intervention(LAYER, "add", vector, position=name),)) for name in EDIT_POSITIONS]
    scene.planned = scene.planner(recipes=recipes)
    placement = scene.planned._builder.resolve_placement(condition.get("placement", "auto"))
    for recipe in recipes:
        jobs += scene.jobs(**{**condition, "placement": placement}, intervention=recipe.sha256)[:2]
    for job, record in zip(jobs, scene.capture(jobs), strict=True):
        yield job.interventions[0].position, job, record, (*job.prompt.token_ids, *record.gen_tokens)


@pytest.mark.parametrize("condition", [{}, {"placement": "user"}, {"prefix": "Final answer:"}], ids=str)
def test_each_rule_edits_the_tokens_that_it_names(
    scene: SiteScene, condition: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "WORTH", 1)
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    for position, job, record, ids in edited(scene, vector, condition):
        n = len(job.prompt.token_ids)
        acting = named_tokens(scene, job, len(record.gen_tokens))[position]
        states, logits = plain(scene, ids, vector, acting)
        assert record.gen_tokens == tuple(logits.argmax(-1)[n - 1 : -1].tolist()), position
        seen = {"prompt_end": states[:, n - 1]}
        if record.gen_tokens:
            seen["response_mean"] = states[:, n:].mean(1)
        for place, value in seen.items():
            np.testing.assert_allclose(record.resid[place], value, atol=2e-5 * np.abs(value).max(), err_msg=position)
        for shift in (-1, 1):  # the control: one token less at one end and one more at the other is seen
            others, _ = plain(scene, ids, vector, {i + shift for i in acting})
            moved = [others[:, n - 1], others[:, n:].mean(1)] if record.gen_tokens else [others[:, n - 1]]
            off = max(np.abs(a - b).max() for a, b in zip(moved, seen.values(), strict=True))
            assert off > 1e-3 or (position == "all" and shift < 0), (position, shift)
