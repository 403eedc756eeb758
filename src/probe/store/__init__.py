"""Cell records on disk. Knows bytes, hashes and plans; knows no model, and reads without torch."""

from probe.store.locks import StoreLock
from probe.store.names import UnknownName
from probe.store.plans import Plan
from probe.store.progress import Coverage
from probe.store.residuals import Residuals
from probe.store.store import Store, open_store
from probe.store.verify import Problem
from probe.store.views import View
from probe.store.writer import StoreWriter, open_writer

__all__ = [
    "Coverage",
    "Plan",
    "Problem",
    "Residuals",
    "Store",
    "StoreLock",
    "StoreWriter",
    "UnknownName",
    "View",
    "open_store",
    "open_writer",
]
