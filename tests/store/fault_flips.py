"""Single bits flipped in committed shards: each must be noticed by reading or by ``verify``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from probe.store import Store, open_store
from probe.values import CorruptShard, StoreError


@dataclass
class Flips:
    """Flipped bits by where they fell and by what noticed them first."""

    header: int = 0
    content: int = 0
    by_reading: int = 0
    by_verify: int = 0
    silent: list[tuple[str, int, int]] = field(default_factory=list)


def flip_bits(path: Path, seed: int, n: int) -> Flips:
    """Flip ``n`` random bits one after the other, half of them in headers, and mend each again."""
    rng, counts = random.Random(seed), Flips()
    before = everything(path)
    shards = sorted((path / "shards").glob("*.safetensors"))
    for number in range(n):
        file = rng.choice(shards)
        whole = file.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        place = rng.randrange(end) if number % 2 else rng.randrange(end, len(whole))
        bit = rng.randrange(8)
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << bit
        file.write_bytes(spoiled)
        counts.header, counts.content = counts.header + (place < end), counts.content + (place >= end)
        if _read_notices(path, file, before):
            counts.by_reading += 1
        elif open_store(path).verify():
            counts.by_verify += 1
        else:
            counts.silent.append((file.name, place, bit))
        file.write_bytes(whole)
    assert open_store(path).verify() == []
    assert everything(path) == before
    return counts


def everything(path: Path) -> list[bytes]:
    """Every value that a reader can ask of a store, as bytes."""
    store = open_store(path)
    view = store.select()
    found = [view.table().to_csv().encode(), view.texts().to_csv().encode()]
    found += [view.label_logp(site).tobytes() for site in ("prompt_end", "answer")]
    for position in ("prompt_end", "answer"):
        found += [resid.numpy().tobytes() for _, resid in view.iter_layers(position=position)]
    return found + _records(store)


def _records(store: Store) -> list[bytes]:
    return [
        repr(record).encode() + b"".join(map(np.ndarray.tobytes, record.resid.values()))
        for record in store.select().records()
    ]


def _read_notices(path: Path, file: Path, before: list[bytes]) -> bool:
    """Whether reading refuses; what it returns without a refusal must be what was committed."""
    try:
        found = everything(path)
    except CorruptShard as error:
        assert file.name in str(error) or file.stem in str(error), f"the refusal does not name {file.name}: {error}"
        return True
    except StoreError:
        return True
    assert found == before, f"wrong values were read from {file.name} without a word"
    return False
