"""Settings of every test: no hub, quiet progress, shapes checked as the code runs."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jaxtyping import install_import_hook

# Where arrays are: their shapes and dtypes are checked at every call, as annotated.
install_import_hook(
    [f"probe.{room}" for room in ("values", "organism", "models", "capture", "mechanism")], "beartype.beartype"
)
