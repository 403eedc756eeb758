"""The activation store beside what a user would pick instead, on the same activations, in one process, interleaved.

python benchmarks/store.py [--quick] [--rounds 7] [--folder DIR] [--seed 0]

Writes 1 GB (4,096 rows x 33 layers x 4,096 bf16) once per format and times reads; every checksum of the store is on.
*Warm* reads find their bytes in the page cache; rows are new ones, or, where it says so, the same one again. *Cold*
reads come from a fresh handle, after ``posix_fadvise(DONTNEED)`` on every file of the format (other processes' pages
stay as they are). Ratios are of times within one round; shown are the median, and in brackets the least and the
greatest over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import store_formats as formats
from store_formats import Format, OurStore, Size

from probe.store import StoreLock, open_store, open_writer
from probe.store.checksums import crc32

FULL = Size(rows=4096, layers=33, d_model=4096, rows_per_shard=256)
QUICK = Size(rows=512, layers=9, d_model=1024, rows_per_shard=64)


@dataclass
class Times:
    """Seconds of one measure, by format and round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def ratio(self, other: str) -> tuple[float, float, float]:
        pairs = zip(self.seconds["store"], self.seconds[other], strict=True)
        found = sorted(ours / theirs for ours, theirs in pairs)
        return found[0], statistics.median(found), found[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small store, to see that all of it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder here)")
    parser.add_argument("--seed", type=int, default=0, help="of the layers and rows that are read")
    parser.add_argument("--memory", nargs=2, metavar=("STORE", "LAYER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        return tell_memory(Path(chosen.memory[0]), int(chosen.memory[1]))
    folder = Path(tempfile.mkdtemp(prefix="store-benchmark-", dir=chosen.folder or Path.cwd()))
    try:
        run(folder, QUICK if chosen.quick else FULL, chosen.rounds, np.random.default_rng(chosen.seed), chosen.quick)
    finally:
        shutil.rmtree(folder)
    return 0


def run(folder: Path, size: Size, rounds: int, rng: np.random.Generator, quick: bool) -> None:
    print(
        f"{machine()}\n{size.rows:,} rows x {size.layers} layers x {size.d_model:,} bf16, {size.nbytes / 1e9:.2f} GB; ",
        end="",
    )
    print(f"{rounds} rounds, interleaved\n")
    found = written(folder, size)
    ours = found[0]
    assert isinstance(ours, OurStore)
    print("| | store | " + " | ".join(f"{other.name}" for other in found[1:]) + " |")
    print("|---|---|" + "---|" * len(found[1:]))
    for each in found:
        formats.bring_to_cache(each.folder)
    warm_layer = interleave(found, rounds, rng, size.layers, lambda f: f.layer, warm=True)
    each_once = once(found, rounds, rng, size.rows)
    warm_row = interleave(found, rounds, rng, size.rows, lambda f: f.row, warm=True, find=True)
    cold_layer = interleave(found, rounds, rng, size.layers, lambda f: f.layer, warm=False)
    cold_row = interleave(found, rounds, rng, size.rows, lambda f: f.row, warm=False, find=True)
    line("one layer, all rows, warm", warm_layer, {"numpy memmap": 3.5}, found)
    line("one layer, all rows, cold", cold_layer, {"safe_open": 0.5}, found)
    line("one row, all layers, warm", each_once, {"safe_open": 1.0}, found)
    line("the same row again, warm", warm_row, {"safe_open": 1.0}, found)
    line("one row, all layers, cold", cold_row, {}, found)
    line(
        f"open ({len(ours.shards)} shards), warm",
        opened([f for f in found if f.name != "safe_open anew"], rounds, rng),
        {},
        found,
    )
    row_of("bytes on disk / bytes of the activations", [f"{bytes_of(f) / size.nbytes:.3f}" for f in found])
    print("\n| of the store alone | measured | target | |\n|---|---|---|---|")
    commits, plain = ours_commits(folder / "commits", size)
    verdict("commit with fsync and hashes, ms per row", commits, 0.5)
    row_of("the same bytes written and fsynced bare, ms per row", [shown(plain), "", ""])
    for words, dtype in (("as stored (bf16)", "bfloat16"), ("as float32", "float32")):
        peaks = [memory_of(ours.folder, layer, dtype) for layer in (1, size.layers // 2, size.layers - 1)]
        verdict(f"peak memory of a layer read {words} / bytes of the result", peaks, 1.3)
    n = 100 if quick else 1350
    without, with_index = opening(folder / "many", n, rounds)
    verdict(f"open {n:,} shards without index, s", without, 3.0)
    verdict(f"open {n:,} shards with index, s", with_index, 0.3)
    handle = ours.open()
    finding = [1e3 * timed(partial(ours.find, handle, int(rng.integers(size.rows)))) for _ in range(rounds)]
    row_of(f"select one of {size.rows:,} rows by its case, ms", [f"{statistics.median(finding):.2f}", "", ""])


def written(folder: Path, size: Size) -> list[Format]:
    """Every format, filled with the same blocks."""
    ours = OurStore(folder / "store", size)
    found: list[Format] = [ours, formats.Memmap(folder / "memmap", size)]
    for package, other in (("zarr", formats.Zarr), ("datasets", formats.Datasets)):
        if find_spec(package):
            found.append(other(folder / package, size))
        else:
            print(f"left out: {other.name}, which needs `pip install {package}`")
    for first, block in size.blocks():
        for each in found:
            each.write(first, block)
    for each in found:
        each.finish()
    found[2:2] = [formats.SafeOpen(ours), formats.SafeOpen(ours, anew=True)]
    first_row, block = next(size.blocks())
    for each in found:  # the same values everywhere, or the times mean nothing
        handle = each.open()
        last = size.layers - 1
        assert (each.layer(handle, last)[: len(block)] == block[:, last]).all(), each.name
        assert (each.row(handle, each.find(handle, first_row + 3)) == block[3]).all(), each.name
    return found


def interleave(
    found: Sequence[Format],
    rounds: int,
    rng: np.random.Generator,
    n: int,
    read: Callable[[Format], Callable[[Any, Any], np.ndarray]],
    *,
    warm: bool,
    find: bool = False,
) -> Times:
    """Each format once per round, in a new order; warm reads are the best of three on the same place.

    With ``find`` the place is looked up first, outside the clock.
    """
    times = Times()
    handles = {each.name: each.open() for each in found} if warm else {}
    for _ in range(rounds):
        at = int(rng.integers(n))
        for index in rng.permutation(len(found)):
            each = found[int(index)]
            if warm:
                handle = handles[each.name]
                work = partial(read(each), handle, each.find(handle, at) if find else at)
                work()
                times.add(each.name, min(timed(work) for _ in range(3)))
            else:
                handle = each.open()
                place = each.find(handle, at) if find else at
                formats.drop_from_cache(each.folder)
                times.add(each.name, timed(partial(read(each), handle, place)))
    return times


def once(found: Sequence[Format], rounds: int, rng: np.random.Generator, n: int) -> Times:
    """Rows that no handle has read before: in each round and format the median of 25, the same for all formats.

    So each pays for what it does on a row's first read, such as mapping its pages.
    """
    times = Times()
    handles = {each.name: each.open() for each in found}
    rows = rng.permutation(n)[: 25 * (rounds + 1)].reshape(-1, 25)
    for number, ats in enumerate(rows):
        for index in rng.permutation(len(found)):
            each = found[int(index)]
            handle = handles[each.name]
            places = [each.find(handle, int(at)) for at in ats]
            seconds = statistics.median(timed(partial(each.row, handle, place)) for place in places)
            if number:  # the first round finds what a handle does only once
                times.add(each.name, seconds)
    return times


def opened(found: Sequence[Format], rounds: int, rng: np.random.Generator) -> Times:
    """From a path to something that can be read; the store then knows its rows, and has checked every header."""
    times = Times()
    for _ in range(rounds):
        for index in rng.permutation(len(found)):
            each = found[int(index)]
            times.add(each.name, min(timed(each.open) for _ in range(3)))
    return times


def ours_commits(folder: Path, size: Size) -> tuple[list[float], list[float]]:
    """Milliseconds per row of each commit, and of a bare write and fsync of its bytes, in turns.

    The records are there before the clock starts.
    """
    writer = OurStore(folder, size)
    commits, plain = [], []
    for first, block in size.blocks():
        records = writer.records(first, block)
        commits.append(1e3 * timed(partial(writer.commit, records)) / len(records))
        plain.append(1e3 * timed(partial(bare_write, folder.parent / "bare", block.view(np.uint8).data)) / len(records))
    writer.finish()
    return commits, plain


def bare_write(path: Path, content: memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def opening(folder: Path, n: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to open a store of many shards and to know its rows, without and with its index."""
    rows_per_shard, layers, d_model = 8, 33, 16
    planned = formats.plan(n * rows_per_shard, rows_per_shard)
    resid = np.ones((layers, d_model), formats.BF16)
    with StoreLock.acquire(folder) as lock:
        writer = open_writer(folder, formats.manifest(layers, d_model), lock=lock)
        writer.add_plan(planned)
        writer.start_run({})
        for first in range(0, len(planned.rows), rows_per_shard):
            rows = planned.rows[first : first + rows_per_shard]
            writer.commit([formats.record(row, (resid * (first % 100)).astype(formats.BF16)) for row in rows])
        writer.finish_run(0)
    index, aside = folder / "index.parquet", folder.parent / "index-aside"
    assert index.exists(), "the writer left no index"
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for there in (True, False):
            if not there:
                index.rename(aside)
            times[there].append(timed(partial(known_rows, folder, len(planned.rows))))
            if not there:
                aside.rename(index)
    return times[False], times[True]


def known_rows(folder: Path, expected: int) -> None:
    assert len(open_store(folder).select()) == expected


def memory_of(folder: Path, layer: int, dtype: str) -> float:
    """Peak resident memory that a layer read adds in a fresh process, over the bytes of its result."""
    command = [sys.executable, __file__, "--memory", str(folder), str(layer)]
    done = subprocess.run(command, env={**os.environ, "DTYPE": dtype}, capture_output=True, text=True, check=True)
    return float(done.stdout)


def tell_memory(folder: Path, layer: int) -> int:
    view = open_store(folder).select()
    resid = view.resid(layer=layer, position=formats.POSITION)
    dtype = formats.BF16 if os.environ["DTYPE"] == "bfloat16" else np.dtype("float32")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    result = resid.numpy(dtype)
    print((memory("VmHWM") - before) / result.nbytes)
    return 0


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(f"{name}:"))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def line(title: str, times: Times, targets: dict[str, float], found: Sequence[Format]) -> None:
    """Medians in milliseconds; beside each other format the ratio store / format, and the target where there is one."""
    cells = [f"{1e3 * statistics.median(times.seconds['store']):.2f} ms"]
    for other in found[1:]:
        if other.name not in times.seconds:
            cells.append("")
            continue
        low, middle, high = times.ratio(other.name)
        cell = f"{1e3 * statistics.median(times.seconds[other.name]):.2f} ms; {middle:.2f}x ({low:.2f}-{high:.2f})"
        if (target := targets.get(other.name)) is not None:
            cell += f", target <= {target:g}x: {'met' if middle <= target else 'MISSED'}"
        cells.append(cell)
    row_of(title, cells)


def row_of(title: str, cells: Sequence[str]) -> None:
    print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def verdict(title: str, values: Sequence[float], target: float) -> None:
    row_of(title, [shown(values), f"<= {target:g}", "met" if statistics.median(values) <= target else "MISSED"])


def shown(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def bytes_of(each: Format) -> int:
    return sum(path.stat().st_size for path in formats.files_of(each.folder))


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    checksums = f"crc32 of {crc32.__module__.partition('.')[0]}"
    return f"{cores}, {memory_gb:.0f} GB of memory, Python {platform.python_version()}, {checksums}"


if __name__ == "__main__":
    sys.exit(main())
