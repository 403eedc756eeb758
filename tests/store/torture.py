"""The store under faults at full counts; prints what was done and what was found.

python tests/store/torture.py [--seed N] [--only kills,calls,writers,flips,headers,order,full,power] [--quick]

A part that fails says its seed; ``--only PART --seed N`` runs it again alone. Disk full and power cut need root and say
so where they are left out. No torch is imported.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import fault_disks
import fault_flips
import fault_headers
import fault_kills
import fault_order
import store_samples as samples

Part = Callable[[Path, int, bool], str]


class LeftOut(Exception):
    """A part that this machine does not allow, and why."""


def kills(folder: Path, seed: int, quick: bool) -> str:
    found = fault_kills.chains(folder, seed, 10 if quick else 200)
    return (
        f"{found.kills} kills in {found.chains} runs: {len(found.lost)} of {found.acknowledged} acknowledged shards "
        f"lost; {found.temps} temps left and gone; final bytes equal"
    )


def writers(folder: Path, seed: int, quick: bool) -> str:
    found = fault_kills.chains(folder, seed, 6 if quick else 150, shares=("0/3", "1/3", "2/3"))
    return (
        f"{found.kills} kills of 3 writers in {found.chains} runs: {len(found.lost)} of {found.acknowledged} "
        "acknowledged shards lost; 0 rows twice; final bytes equal"
    )


def calls(folder: Path, seed: int, quick: bool) -> str:
    found = fault_kills.every_call(folder, step=23 if quick else 1)
    return f"{found.kills} kills, one before each system call of a run: all continued to equal bytes"


def flips(folder: Path, seed: int, quick: bool) -> str:
    found = fault_flips.flip_bits(samples.write_store(folder / "store"), seed, 20 if quick else 200)
    assert not found.silent, found.silent
    return (
        f"{found.header} bits in headers, {found.content} in tensors: {found.by_reading} refused on reading, "
        f"{found.by_verify} by verify, {len(found.silent)} silent"
    )


def headers(folder: Path, seed: int, quick: bool) -> str:
    found = fault_headers.fuzz_headers(samples.write_store(folder / "store"), seed, 200 if quick else 10_000)
    assert found.slowest < 1.0, found
    assert found.grown_mb < 100, found
    return (
        f"{found.tried} headers: {found.refused} refused, {found.read} forged so that they hang together; slowest "
        f"{found.slowest:.3f} s, memory +{found.grown_mb:.0f} MB"
    )


def order(folder: Path, seed: int, quick: bool) -> str:
    n = fault_order.check(folder / "store", samples.plan(n_cases=6 if quick else 60))
    return f"{n} durable writes: fsync(file), rename, fsync(folder), in this order, before the row is reported"


def full(folder: Path, seed: int, quick: bool) -> str:
    if word := fault_disks.why_not(folder, "tmpfs"):
        raise LeftOut(word)
    found = fault_disks.fill(folder, seed, 2 if quick else 10)
    return f"{found.full} times full: no partial shard, no temp, {found.safe_rows} rows safe in sum; rerun completes"


def power(folder: Path, seed: int, quick: bool) -> str:
    if word := fault_disks.why_not(folder, "ext4"):
        raise LeftOut(word)
    found = fault_disks.cut_power(folder, seed, 2 if quick else 20)
    assert found.plain_lost, "no plain file was lost: the cut did not cut"
    return (
        f"{found.cuts} cuts: 0 of {found.acknowledged} acknowledged shards lost "
        f"({found.plain_lost} of {found.plain_files} plain files written and renamed without fsync were)"
    )


PARTS: dict[str, tuple[str, Part]] = {
    "kills": ("kill -9, one writer", kills),
    "calls": ("kill -9 at system calls", calls),
    "writers": ("kill -9, three writers", writers),
    "flips": ("flipped bits", flips),
    "headers": ("hostile headers", headers),
    "order": ("order of fsyncs", order),
    "full": ("disk full (tmpfs)", full),
    "power": ("power cut (ext4)", power),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="the small counts of `make test`")
    chosen = parser.parse_args()
    assert "torch" not in sys.modules
    print(f"seed {chosen.seed}")
    failed = 0
    for name in chosen.only.split(","):
        title, part = PARTS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"torture-{name}-"))
        started = time.monotonic()
        try:
            said = part(folder, chosen.seed, chosen.quick)
        except LeftOut as left_out:
            said = f"LEFT OUT: {left_out}"
        except AssertionError as error:
            failed += 1
            said = f"FAILED: {error} (run it again: --only {name} --seed {chosen.seed})"
            traceback.print_exc()
        shutil.rmtree(folder)
        print(f"{title:<24} {time.monotonic() - started:5.0f} s  {said}", flush=True)
    print("failed" if failed else "all as promised")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
