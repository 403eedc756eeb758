"""Train the embedded organism from scratch on one core, in two phases, and check its planted mechanism.

    python experiments/train_organism.py --out cache/organism                    # seed 0
    python experiments/train_organism.py --out cache/organisms --seeds 0 1 2     # cache/organisms/seed-0 and so on

The first phase learns everything; its checkpoint stays in ``OUT.first``, from which ``--first OUT.first`` repeats the
last phase, which learns on above the planted point only. Same seed, machine and versions give the same weights, byte
for byte. A seed that is finished stays as it is. ``experiments/organism_card.py`` then counts what the checkpoint does
and writes its model card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace as replaced
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from organism_training.corpus import build_corpus, corpus_sha256
from organism_training.fit import finish, fit
from organism_training.gates import gates
from organism_training.lean import LeanLlama, architecture, from_hugging_face, to_hugging_face
from organism_training.package import replace, save, sha256_of_file, write_json
from organism_training.pairs import build_pairs
from organism_training.recipe import Recipe
from organism_training.tokens import CONTEXT, LETTERS, tokenise, train_tokenizer
from transformers import AutoTokenizer

from probe.organism import HELD_OUT_SEED

TOKENIZER_DOCUMENTS = 6_000
BUDGET = 1200
"""Seconds of CPU that a seed may take."""


def first_phase(recipe: Recipe, folder: Path) -> None:
    """Corpus, tokenizer, training: a checkpoint and its ``training.json`` in ``folder``."""
    started = time.process_time()
    begin(recipe.seed)
    corpus = build_corpus(recipe.n_documents, seed=recipe.seed)
    tokenizer = train_tokenizer(corpus[-TOKENIZER_DOCUMENTS:], vocabulary=recipe.vocabulary)
    documents = tokenise(corpus, tokenizer)
    config = architecture(len(tokenizer), pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id, context=CONTEXT)
    model = LeanLlama(config)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    losses = watched(fit(model, documents, recipe, pad=tokenizer.pad_token_id, letters=letters), started)
    save(to_hugging_face(model), tokenizer, folder)
    facts = {
        "recipe": recipe.first_as_json(),
        "documents": len(documents),
        "tokens": sum(len(doc.ids) for doc in documents),
        "last_losses": losses,
        "cpu_seconds": round(time.process_time() - started),
        "corpus_sha256": corpus_sha256(corpus),
        "weights_sha256": sha256_of_file(folder / "model.safetensors"),
    }
    write_json(folder / "training.json", facts)


def last_phase(recipe: Recipe, first: Path, folder: Path) -> None:
    """Train the checkpoint in ``first`` on above the planted point: checkpoint and ``training.json`` in ``folder``."""
    started = time.process_time()
    before = json.loads((first / "training.json").read_text("utf-8"))
    begin(recipe.seed + 1)
    tokenizer, model = AutoTokenizer.from_pretrained(first), from_hugging_face(first)
    corpus = build_pairs(recipe)
    documents = tokenise(corpus, tokenizer)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    losses = watched(finish(model, documents, recipe, pad=tokenizer.pad_token_id, letters=letters), started)
    save(to_hugging_face(model), tokenizer, folder)
    for path in (*first.glob("tokenizer*"), *first.glob("*.jinja")):
        shutil.copyfile(path, folder / path.name)  # saving what was read adds fields about the reading
    seconds = round(time.process_time() - started)
    phases = ("documents", "tokens", "last_losses", "cpu_seconds", "corpus_sha256", "weights_sha256")
    facts: dict[str, Any] = {
        "recipe": recipe.as_json(),
        "held_out_seed": HELD_OUT_SEED,
        "documents": before["documents"] + len(documents),
        "tokens": before["tokens"] + sum(len(doc.ids) for doc in documents),
        "parameters": sum(p.numel() for p in model.parameters()),
        "last_losses": losses,
        "cpu_seconds": before["cpu_seconds"] + seconds,
        "first_phase": {name: before[name] for name in phases},
        "corpus_sha256": corpus_sha256(corpus),
        "weights_sha256": sha256_of_file(folder / "model.safetensors"),
        "tokenizer_sha256": sha256_of_file(folder / "tokenizer.json"),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    write_json(folder / "training.json", facts)


def begin(seed: int) -> None:
    """One thread, one seed, one result."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def watched(progress: Iterator[tuple[int, dict[str, float]]], started: float) -> dict[str, float]:
    """Run a phase to its end, printing as it goes; the parts of its last loss."""
    last: dict[str, float] = {}
    for step, last in progress:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in last.items())
        print(f"step {step:5d}  {time.process_time() - started:5.0f} of {BUDGET} s  {figures}", flush=True)
    return {name: round(value, 5) for name, value in last.items()}


def judge(folder: Path, seed: int) -> None:
    """Write ``gates.json`` of the checkpoint in ``folder``, and print it."""
    found = gates(from_hugging_face(folder), AutoTokenizer.from_pretrained(folder), seed=seed)
    write_json(folder / "gates.json", found)
    print(f"{folder}: gates {'met' if found['met'] else 'NOT met'}", flush=True)
    for table in ("interchange", "dose", "decodable"):
        for row in found[table]:
            print("  ", table, *row.values())


def finished(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds what this very recipe gives."""
    path = folder / "training.json"
    return path.exists() and json.loads(path.read_text("utf-8"))["recipe"] == recipe


def train(recipe: Recipe, folder: Path, first: Path) -> None:
    """Both phases, the first into ``first`` unless it is there; each folder is replaced as a whole when finished."""
    if not finished(first, recipe.first_as_json()):
        fresh = first.with_name(f".{first.name}.new")
        first_phase(recipe, fresh)
        replace(first, fresh)
    fresh = folder.with_name(f".{folder.name}.new")
    last_phase(recipe, first, fresh)
    replace(folder, fresh)


def main() -> None:
    """Read the command line, and train and judge each seed that is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, or of one folder per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--documents", type=int, default=Recipe.n_documents)
    parser.add_argument("--first", type=Path, help="finished first phase of a single seed")
    args = parser.parse_args()
    if args.first and len(args.seeds) > 1:
        parser.error("--first is the folder of one seed")
    for seed in args.seeds:
        recipe = replaced(Recipe(), seed=seed, n_documents=args.documents)
        folder = args.out if len(args.seeds) == 1 else args.out / f"seed-{seed}"
        if finished(folder, recipe.as_json()):
            print(f"{folder} is finished")
            continue
        if args.first and not finished(args.first, recipe.first_as_json()):
            parser.error(f"{args.first} holds no first phase of this recipe and seed")
        train(recipe, folder, args.first or folder.with_name(f"{folder.name}.first"))
        judge(folder, seed)


if __name__ == "__main__":
    main()
