"""The planted subspaces as a file of arrays, for ``probe.organism.mechanism``. Knows the channels; runs no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from organism_training.interchange import DECOY, SCALE, channels
from organism_training.lean import POINT

POSITIONS = {"direct": "prompt_end", "reasoned": "answer"}


def write_mechanism(folder: Path) -> None:
    """``mechanism.npz`` beside the weights: the columns that training with this seed planted the numbers in."""
    seed = json.loads((folder / "training.json").read_text("utf-8"))["recipe"]["seed"]
    width = json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]
    planted = dict(zip(POSITIONS, channels(width, seed), strict=True))
    about = {
        "layer": POINT,
        "scale": SCALE,
        "decoy_share": DECOY,
        "channels": {
            name: {"position": POSITIONS[name], "numbers": list(channel.names)} for name, channel in planted.items()
        },
    }
    arrays = {
        f"{name}.{part}": getattr(channel, part).numpy().astype(np.float32)
        for name, channel in planted.items()
        for part in ("basis", "centre", "spread", "decoy")
    }
    np.savez_compressed(folder / "mechanism.npz", about=np.array(json.dumps(about)), **arrays)
