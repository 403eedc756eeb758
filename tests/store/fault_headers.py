"""Hostile shard headers: random bytes, and valid headers with something changed, under their old or a forged name.

Every one is refused in one sentence, at once and without memory; a file whose name, header and size still agree after
the change may also be read, but never ends in another exception.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probe.store import open_store
from probe.values import ProbeWarning, StoreError

HUGE = (2**63, 2**64 - 1, 2**62, 2**53 + 1, 2**31, -1, -(2**63), 0, 1, 7)
ODD = (None, True, 1.5, "", "F32", [], {}, [[]], "\x00", "é" * 300, *HUGE)


@dataclass
class Fuzzed:
    """Headers tried, refused, and (forged ones that hang together) read; CPU seconds of the slowest, growth in MB."""

    tried: int = 0
    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    grown_mb: float = 0.0


def fuzz_headers(path: Path, seed: int, n: int) -> Fuzzed:
    """Put ``n`` hostile files in the place of one shard of the store at ``path``, and read the store each time."""
    rng, counts = random.Random(seed), Fuzzed()
    first, *others = sorted((path / "shards").glob("*.safetensors"))
    for other in others:
        other.unlink()
    whole = first.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text, content = whole[8 : 8 + length].rstrip(b" "), whole[8 + length :]
    _attempt(path)
    memory = _resident_mb()
    for number in range(n):
        spoiled, hostile = _hostile(rng, text, content)
        forged = number % 2 == 1
        name = hashlib.sha256(spoiled).hexdigest()[:32] if forged else first.stem
        file = first.with_name(f"{name}.safetensors")
        first.unlink(missing_ok=True)
        file.write_bytes(hostile)
        started = time.process_time()
        refused = _attempt(path)
        counts.slowest = max(counts.slowest, time.process_time() - started)
        counts.tried, counts.refused = counts.tried + 1, counts.refused + refused
        counts.read += not refused
        assert refused or forged, f"seed {seed}, header {number} was read under a name that is not its own"
        counts.grown_mb = max(counts.grown_mb, _resident_mb() - memory)
        file.unlink()
    first.write_bytes(whole)
    assert not _attempt(path)
    return counts


def _attempt(path: Path) -> bool:
    """Whether reading everything that a header decides is refused; any other exception is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbeWarning)  # of rows that a forged header does not hold
        try:
            view = open_store(path).select()
            view.table()
            view.texts()
            view.label_logp(missing="nan")
            view.resid(layer=1, position="prompt_end", missing="drop").numpy()
            list(view.records())
        except StoreError:
            return True
        except Exception as error:
            raise AssertionError(f"a hostile header ends in {error!r}, not in a refusal") from error
    return False


def _hostile(rng: random.Random, text: bytes, content: bytes) -> tuple[bytes, bytes]:
    """A changed header, and the file that holds it; the length before it lies now and then."""
    change = rng.choice(CHANGES)
    spoiled = change(rng, text)
    if spoiled == text:
        spoiled = text + b"x"
    claimed = len(spoiled)
    if rng.random() < 0.15:
        claimed = rng.choice((2**63, 2**64 - 1, claimed + 1, max(claimed - 1, 0), 0, 2**32, rng.randrange(2**40)))
    return spoiled, claimed.to_bytes(8, "little") + spoiled + content


def _noise(rng: random.Random, _text: bytes) -> bytes:
    return rng.randbytes(rng.randrange(2000))


def _flipped(rng: random.Random, text: bytes) -> bytes:
    spoiled = bytearray(text)
    for _ in range(rng.randrange(1, 6)):
        spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
    return bytes(spoiled)


def _cut(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text))
    return text[:at] + text[at + rng.randrange(1, 60) :]


def _nested(rng: random.Random, _text: bytes) -> bytes:
    depth = rng.choice((100, 1000, 100_000, 1_000_000))
    return rng.choice((b"[" * depth, b'{"a":' * depth, b'{"__metadata__":{"a":"b"},"t":' + b"[" * depth))


def _doubled(rng: random.Random, text: bytes) -> bytes:
    header = json.loads(text)
    key = rng.choice(list(header))
    return b"{" + json.dumps(key).encode() + b":" + json.dumps(header[key]).encode() + b"," + text[1:]


def _edited(rng: random.Random, text: bytes) -> bytes:
    """One value somewhere in the header replaced by one that does not belong there."""
    header = json.loads(text)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    odd = copy.deepcopy(rng.choice(ODD))
    match rng.randrange(8):
        case 0:
            entry["dtype"] = rng.choice((*ODD, "F64", "BF16", "I64", "F8_E4M3", "f32"))
        case 1:
            flat = math.prod(entry["shape"])
            same = ([flat], [1, flat], [flat, 1], entry["shape"][::-1], [*entry["shape"], 1])  # the bytes would fit
            entry["shape"] = rng.choice(([2**40, 2**40], [2**31] * 8, [1] * 100_000, [0], [], odd, *same))
        case 2:
            entry["data_offsets"] = [rng.choice(HUGE), rng.choice(HUGE)]
        case 3:
            shift = rng.choice((-8, -1, 1, 8, 2**40))
            entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        case 4:
            del header[name]
        case 5:
            header[f"{name}{rng.choice(('', '2', chr(0)))}"] = odd
        case 6:
            key = rng.choice(list(header["__metadata__"]))
            header["__metadata__"][key] = rng.choice(("", "[]", "{}", "[1e999]", "[" * 10_000, "null", odd))
        case _:
            rows = json.loads(header["__metadata__"]["rows"])
            row = rng.choice(rows)
            row[rng.choice(list(row))] = odd
            header["__metadata__"]["rows"] = json.dumps(rng.choice((rows, rows[1:], rows * 2, [odd])))
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_noise, _flipped, _flipped, _cut, _nested, _doubled),
    *(_edited, _edited, _edited, _edited),
)


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("this system tells no resident memory")
