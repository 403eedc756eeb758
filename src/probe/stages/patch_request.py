"""What a patching run is asked. Knows names; loads nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from probe.mechanism.patching.reads import LATENT, STATED
from probe.values import ProbeError
from probe.values.nearest import nearest

READS = (LATENT, STATED)
TEXTS = ("base", "own")


@dataclass(frozen=True)
class PatchRequest:
    """What is patched, and into what.

    ``personas``: whose runs (empty: all but the base). ``reads``: the label at the prompt's end, the stated one after
    a forced text, or both; ``text``: whose, the ``base``'s or each persona's ``own``. ``cases``: so many, spread over
    the strata (None: all). ``points``: residual points, and blocks of these numbers (None: all). ``streams``: None for
    all. ``neutral``: the base run has a neutral sentence of the persona's length in its place; else it is the study's
    base. ``noising``, ``controls`` and ``paths`` are run unless they are False.

    Raises:
        ProbeError: a read or a text that nobody knows, or none.
    """

    personas: tuple[str, ...] = ()
    reads: tuple[str, ...] = READS
    text: str = "base"
    cases: int | None = 64
    points: tuple[int, ...] | None = None
    streams: tuple[str, ...] | None = None
    neutral: bool = True
    noising: bool = True
    controls: bool = True
    paths: bool = True

    def __post_init__(self) -> None:
        for name in self.reads or ("",):
            if name not in READS:
                raise ProbeError(f"a patched label is one of {', '.join(READS)}. {nearest(name, READS, 'read')}")
        if self.text not in TEXTS:
            raise ProbeError(f"the forced text is the base's or each persona's own: base or own; found {self.text!r}")

    @property
    def identity(self) -> dict[str, object]:
        """What the reads of a unit depend on, beside its runs and the grid."""
        return {name: asdict(self)[name] for name in ("noising", "controls", "paths")}
