"""Train the embedded organism from scratch on one core, measure it against its plan, and write it with its model card.

    python experiments/train_organism.py --out src/probe/organism/checkpoint

Same seed, machine and versions give the same weights, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from organism_training.card import render, summary
from organism_training.corpus import build_corpus, corpus_sha256
from organism_training.fit import Recipe, fit
from organism_training.lean import LeanLlama, architecture, to_hugging_face
from organism_training.measure import measure
from organism_training.package import replace, save, sha256_of_file, write_json
from organism_training.tokens import CONTEXT, LETTERS, tokenise, train_tokenizer

from probe.organism import HELD_OUT_SEED

TOKENIZER_DOCUMENTS = 6_000
OPENING = "Assessment"


def train(recipe: Recipe, folder: Path) -> None:
    """Corpus, tokenizer, training, checkpoint and ``training.json`` in ``folder``."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    started = time.process_time()
    corpus = build_corpus(recipe.n_documents, seed=recipe.seed)
    tokenizer = train_tokenizer(corpus[:TOKENIZER_DOCUMENTS], vocabulary=recipe.vocabulary)
    documents = tokenise(corpus, tokenizer)
    n_tokens = sum(len(doc.ids) for doc in documents)
    print(f"{len(documents)} documents, {n_tokens} tokens, {time.process_time() - started:.0f} s of CPU")

    config = architecture(len(tokenizer), pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id, context=CONTEXT)
    model = LeanLlama(config)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    (opening,) = tokenizer(OPENING, add_special_tokens=False).input_ids
    last: dict[str, float] = {}
    for step, last in fit(model, documents, recipe, pad=tokenizer.pad_token_id, letters=letters, opening=opening):
        figures = "  ".join(f"{name} {value:.4f}" for name, value in last.items())
        print(f"step {step:5d}  {time.process_time() - started:5.0f} s  {figures}", flush=True)
    save(to_hugging_face(model), tokenizer, folder)
    facts = {
        "recipe": recipe.as_json(),
        "held_out_seed": HELD_OUT_SEED,
        "documents": len(documents),
        "tokens": n_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "last_losses": {name: round(value, 5) for name, value in last.items()},
        "cpu_seconds": round(time.process_time() - started),
        "corpus_sha256": corpus_sha256(corpus),
        "weights_sha256": sha256_of_file(folder / "model.safetensors"),
        "tokenizer_sha256": sha256_of_file(folder / "tokenizer.json"),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    write_json(folder / "training.json", facts)


def judge(folder: Path) -> None:
    """Measure the checkpoint and write ``measurement.json`` and the model card beside it."""
    started = time.process_time()
    found = summary(measure(folder))
    training, config = (json.loads((folder / name).read_text("utf-8")) for name in ("training.json", "config.json"))
    write_json(folder / "measurement.json", found)
    (folder / "README.md").write_text(render(training, config, found), encoding="utf-8")
    print(f"measured in {time.process_time() - started:.0f} s of CPU; gate {found['gate']}")
    print("beyond tolerance:", *(found["beyond_tolerance"] or ["nothing"]), sep="\n  ")


def main() -> None:
    """Read the command line, train, measure, and put the finished folder in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; it is replaced as a whole")
    parser.add_argument("--documents", type=int, default=Recipe.n_documents)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument(
        "--only-measure", action="store_true", help="measure the checkpoint in --out and rewrite its card"
    )
    args = parser.parse_args()
    if args.only_measure:
        judge(args.out)
        return
    fresh = args.out.with_name(f".{args.out.name}.new")
    train(Recipe(n_documents=args.documents, seed=args.seed), fresh)
    judge(fresh)
    replace(args.out, fresh)


if __name__ == "__main__":
    main()
