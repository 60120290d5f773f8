"""How a training step is run: eagerly, as a captured graph, or as a compiled one."""

from .engine import Engine, GraphDiffers, SubStep
from .modes import Compile, as_compile
from .updates import AdamUpdate, Outcome, update_of

__all__ = [
    "AdamUpdate",
    "Compile",
    "Engine",
    "GraphDiffers",
    "Outcome",
    "SubStep",
    "as_compile",
    "update_of",
]
