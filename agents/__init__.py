"""One file per method: a LightningModule that reads like its paper, and what runs it.

What a notebook needs of all that can be imported from here.
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
    # Importing torch takes seconds, and a part of what lies below this package needs none.
    _MODULES = ("config.hparams", "agents.own_parts", "agents.trainer", "agents.notebook")

    def __getattr__(name: str) -> Any:
        if name in __all__:
            for module in map(importlib.import_module, _MODULES):
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
