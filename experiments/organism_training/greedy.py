"""Greedy replies with the letters' log-probabilities, by plain transformers. Knows a checkpoint; knows no plan.

A guess of the reply is checked in one forward: where every token of the guess is the likeliest one given those before
it, the guess *is* the greedy reply, and no step was decoded. Other replies are decoded by ``generate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 120
TOKENS_PER_BATCH = 2048
"""So many token positions at once: more no longer fit the cache of one core."""

GENERATED_AT_ONCE = 128
FINAL = re.compile(r"Final answer: ([ABC])\b")


@dataclass(frozen=True, eq=False)
class Reply:
    """One greedy reply: its text, whether it ended, and the log-probability of A, B, C in the whole vocabulary at the
    last prompt token and before the stated letter. ``letter`` is 0, 1, 2, or -1 where no one letter was stated."""

    text: str
    ended: bool
    letter: int
    prompt_end: np.ndarray
    answer: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Model and tokenizer of one folder, in float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @staticmethod
    def load(folder: Path) -> Checkpoint:
        """A checkpoint in Hugging Face's layout."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return Checkpoint(model, AutoTokenizer.from_pretrained(folder))

    @property
    def letters(self) -> list[int]:
        """The ids of A, B, C."""
        found: list[int] = self.tokenizer.convert_tokens_to_ids(["A", "B", "C"])
        return found

    def prompt(self, system: str | None, user: str) -> str:
        """The prompt as the checkpoint's own chat template renders it."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, without special tokens of the tokenizer's own."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return found

    @torch.inference_mode()
    def following(self, rows: Sequence[list[int]], begins: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the row, log-softmax [position vocab] at the positions from ``begins`` to its end), any order."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            width = len(rows[order[-1]])
            batch = [order.pop() for _ in range(min(len(order), max(1, TOKENS_PER_BATCH // width)))]
            ids = torch.full((len(batch), width), self.tokenizer.pad_token_id)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            wanted = [hidden[row, begins[i] : len(rows[i])] for row, i in enumerate(batch)]
            logp = torch.log_softmax(self.model.lm_head(torch.cat(wanted)), dim=-1).numpy()
            ends = np.cumsum([len(part) for part in wanted])
            yield from zip(batch, np.split(logp, ends[:-1]), strict=True)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Greedy continuations without the end token, as far as ``MAX_NEW_TOKENS``."""
        out: list[list[int]] = [[] for _ in prompts]
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), GENERATED_AT_ONCE):
            batch = order[start : start + GENERATED_AT_ONCE]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), pad)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            made = self.model.generate(
                input_ids=ids, attention_mask=(ids != pad).long(), do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
            for i, row in zip(batch, made[:, width:].tolist(), strict=True):
                out[i] = row[: row.index(end)] if end in row else row
        return out


def greedy(checkpoint: Checkpoint, prompts: Sequence[str], guesses: Sequence[str]) -> list[Reply]:
    """The greedy reply to every prompt; ``guesses`` are what it may be."""
    heads = checkpoint.ids(prompts)
    wholes = checkpoint.ids([prompt + guess for prompt, guess in zip(prompts, guesses, strict=True)])
    assert all(whole[: len(head)] == head for head, whole in zip(heads, wholes, strict=True))
    tails = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True)]
    out = _replies(checkpoint, heads, tails, checked=True)
    for reletter in (True, False):  # the likeliest letter in the guess's place, then whatever else the model says
        left = [i for i, reply in enumerate(out) if isinstance(reply, list)]
        tried = [out[i] for i in left] if reletter else checkpoint.generate([heads[i] for i in left])
        found = _replies(checkpoint, [heads[i] for i in left], tried, checked=reletter)
        for i, reply in zip(left, found, strict=True):
            out[i] = reply
    assert all(isinstance(reply, Reply) for reply in out)
    return out


def _replies(
    checkpoint: Checkpoint, heads: list[list[int]], tails: list[list[int]], *, checked: bool
) -> list[Reply | list[int]]:
    """Each tail as a reply. With ``checked``, a tail that is not the greedy reply comes back as another guess: itself,
    with the first unlikely token exchanged for the likeliest."""
    end = checkpoint.tokenizer.eos_token_id
    out: list[Reply | list[int]] = [[] for _ in heads]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    for i, logp in checkpoint.following(rows, [len(head) - 1 for head in heads]):
        likeliest, wanted = logp.argmax(axis=1), np.array([*tails[i], end])
        wrong = np.flatnonzero(likeliest != wanted)
        if checked and len(wrong):
            out[i] = [*tails[i][: wrong[0]], int(likeliest[wrong[0]]), *tails[i][wrong[0] + 1 :]]
        else:
            out[i] = _reply(checkpoint, tails[i], logp[:, checkpoint.letters], ended=len(tails[i]) < MAX_NEW_TOKENS)
    return out


def _reply(checkpoint: Checkpoint, tail: list[int], logp: np.ndarray, *, ended: bool) -> Reply:
    text = checkpoint.tokenizer.decode(tail)
    at = [t for t, token in enumerate(tail) if token in checkpoint.letters]
    if text in ("A", "B", "C"):
        return Reply(text, ended, "ABC".index(text), logp[0], logp[0])
    if len(found := FINAL.findall(text)) == 1 and text.endswith(f"Final answer: {found[0]}"):
        return Reply(text, ended, "ABC".index(found[0]), logp[0], logp[at[-1]])
    return Reply(text, ended, -1, logp[0], None)
