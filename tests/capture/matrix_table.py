"""Run the matrix and print what it compared: ``python tests/capture/matrix_table.py [--fast] [architecture ...]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.capture.architectures import ARCHITECTURES, KINDS
from tests.capture.matrix import SCENES, Line, is_fast


def main() -> int:
    """Print one line for each architecture and backend, and the sum; 1 if anything was beyond its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=ARCHITECTURES, metavar="architecture")
    parser.add_argument("--fast", action="store_true", help="only the cells of `make test`")
    chosen = parser.parse_args()
    lines = []
    print("| architecture | backend | scenes | sites | worst site, relative | worst log-probability |")
    print("|---|---|---|---|---|---|")
    for name in chosen.names:
        for kind in KINDS:
            scenes = [scene for scene in SCENES if is_fast(name, kind, scene) or not chosen.fast]
            line = Line.of(name, kind, scenes)
            lines.append(line)
            wrong = f" ({line.wrong} beyond their limits)" if line.wrong else ""
            print(
                f"| {name} | {kind} | {line.scenes} | {line.sites:,} "
                f"| {line.worst_site:.1e} | {line.worst_logp:.1e}{wrong} |",
                flush=True,
            )
    print(
        f"\n{sum(line.scenes for line in lines)} cells, {sum(line.sites for line in lines):,} sites; worst site "
        f"{max(line.worst_site for line in lines):.1e}, worst log-probability "
        f"{max(line.worst_logp for line in lines):.1e}; {sum(line.wrong for line in lines)} beyond their limits"
    )
    return int(any(line.wrong for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
