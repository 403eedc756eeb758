"""A tiny model with cells whose answer sites are read, and a plain forward to read them a second time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from probe.capture import Capturer, Job, JobPlanner, PassSettings, capture_shard
from probe.models import find_model
from probe.models.hf import HFBackend
from probe.models.loading import load_backend
from probe.models.points import residual_points
from probe.prompts import AnswerSites, LabelTokens, LetterVocabulary, PromptBuilder, load_tokenizer
from probe.values import (
    LABEL_SITES,
    POSITIONS,
    Case,
    Cell,
    CellRecord,
    Condition,
    GivenText,
    Option,
    Persona,
    Recipe,
    Task,
)
from tests.tiny_models import save_tiny_model

OPTIONS = (Option("home", "stay home"), Option("clinic", "routine care"), Option("emergency", "emergency"))
PERSONAS = (Persona("nurse", ("You are a nurse.",)), Persona("physician", ("You are an ED physician.",)))
NEW_TOKENS = 12


class SiteScene:
    """Cells of two personas and three cases, on a tiny random model of a family."""

    def __init__(
        self,
        folder: Path,
        family: str = "llama",
        *,
        letters: tuple[str, ...] = ("A", "B", "C"),
        score: str = "token",
        given: Sequence[GivenText] = (),
        template: str | None = None,
    ) -> None:
        save_tiny_model(folder, family, scale=3.0)
        self.task = Task("triage", ("{case}\n\n{options} Final answer: X.",), OPTIONS, letters, "emergency")
        self.tokenizer = load_tokenizer(folder, chat_template=template)
        backend = load_backend(find_model(str(folder)), backend="hf", dtype="auto", device="cpu", attention=None)
        assert isinstance(backend, HFBackend)
        self.backend = backend
        layers = tuple(range(backend.facts.shape.n_layers + 1))
        self.capturer = Capturer(
            backend=backend,
            tokenizer=self.tokenizer,
            vocabulary=LetterVocabulary(self.tokenizer, letters),
            letters=letters,
            options=self.task.option_ids,
            settings=PassSettings(residual_points(layers), POSITIONS, NEW_TOKENS),
            batch_size=4,
            dtype="float32",
            label_sites=LABEL_SITES,
        )
        self.cases = [
            Case(str(k), "A patient with chest pain, " + "54 years. " * (1 + 3 * k), "clinic") for k in range(3)
        ]
        self._score = score
        self.planned = self.planner(given)

    def planner(self, given: Sequence[GivenText] = (), recipes: Sequence[Recipe] = ()) -> JobPlanner:
        """Plans cells with these given texts and interventions; runs nothing."""
        builder = PromptBuilder(self.tokenizer, self.task)
        sites = AnswerSites(builder, LABEL_SITES, "Final answer:", self._score)
        return JobPlanner(builder, PERSONAS, self.cases, sites=sites, given=given, recipes=recipes)

    def job(self, case: str, persona: str = "nurse", **condition: str | int) -> Job:
        cell = Cell(persona, case, Condition(**condition))  # type: ignore[arg-type]  # fields by their names
        return self.planned.job(cell, 0, planned=lambda persona, case: None, keep_text=False)

    def jobs(self, persona: str = "nurse", **condition: str | int) -> list[Job]:
        return [self.job(case.id, persona, **condition) for case in self.cases]

    def capture(self, jobs: Sequence[Job]) -> list[CellRecord]:
        result = capture_shard(self.capturer, jobs, lambda rows: None)
        assert not result.failed
        return result.records

    def forward(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities ``[pos, vocab]`` and ``hidden_states`` ``[layer, pos, d_model]`` of one plain forward."""
        with torch.no_grad():
            out = self.backend.model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
        states = torch.stack([state[0] for state in out.hidden_states])
        return out.logits[0].float().log_softmax(-1).numpy(), states.numpy()

    def labels_after(self, ids: Sequence[int], labels: LabelTokens) -> np.ndarray:
        """Log-probability of each label after some tokens, each spelling fed in full, by plain forwards."""
        spelled = labels.spelled or ((),) * len(labels.letters)
        found = []
        for single, several in zip(labels.ids, spelled, strict=True):
            spellings = [*((token,) for token in single), *several]
            scores = []
            for spelling in spellings:
                logp, _ = self.forward((*ids, *spelling))
                scores.append(sum(logp[len(ids) - 1 + i, token] for i, token in enumerate(spelling)))
            found.append(np.logaddexp.reduce(scores))
        return np.array(found)
