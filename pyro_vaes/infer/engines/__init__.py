"""How a training step is run: eagerly, as a captured graph, or as a compiled one."""

from .engine import Engine, GraphDiffers, SubStep
from .modes import Compile, as_compile

__all__ = ["Compile", "Engine", "GraphDiffers", "SubStep", "as_compile"]
