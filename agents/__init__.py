"""One file per method, a LightningModule that reads like its paper, and the code that runs it.

Notebooks import what they need from here.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Hparams",
    "Results",
    "Trainer",
    "add_callback",
    "add_part",
    "load_run",
    "results",
    "segment",
]

if TYPE_CHECKING:
    from agents.notebook import Results, load_run, results, segment
    from agents.own_parts import add_callback, add_part
    from agents.trainer import Trainer
    from config.hparams import Hparams
else:
    # Lazily: importing torch takes seconds, and some modules of this package do not need it.
    _PLACES = {
        "config.hparams": ("Hparams",),
        "agents.notebook": ("Results", "load_run", "results", "segment"),
        "agents.own_parts": ("add_callback", "add_part"),
        "agents.trainer": ("Trainer",),
    }

    def __dir__() -> list[str]:
        return __all__

    def __getattr__(name: str) -> Any:
        for place, names in _PLACES.items():
            if name in names:
                return getattr(importlib.import_module(place), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
