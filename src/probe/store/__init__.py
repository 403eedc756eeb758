"""Cell records on disk. Knows bytes, hashes and plans; knows no model, and reads without torch."""

from probe.store.activations import ActivationCache
from probe.store.editions import ON_CHANGED, OnChanged
from probe.store.guests import GuestWriter, open_guest
from probe.store.locks import Share, StoreLock
from probe.store.names import UnknownName
from probe.store.plans import Plan
from probe.store.progress import Coverage
from probe.store.residuals import Residuals
from probe.store.seal import Seal, seal_store
from probe.store.store import Store, open_store
from probe.store.tables import LabelVariants
from probe.store.verify import Problem
from probe.store.views import View
from probe.store.writer import StoreWriter, open_writer

__all__ = [
    "ON_CHANGED",
    "ActivationCache",
    "Coverage",
    "GuestWriter",
    "LabelVariants",
    "OnChanged",
    "Plan",
    "Problem",
    "Residuals",
    "Seal",
    "Share",
    "Store",
    "StoreLock",
    "StoreWriter",
    "UnknownName",
    "View",
    "open_guest",
    "open_store",
    "open_writer",
    "seal_store",
]
