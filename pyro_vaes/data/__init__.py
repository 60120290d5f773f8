"""Data sets of images as tensors in memory: loading, splitting, preprocessing."""

from .arrays import from_tensors
from .availability import DataSetState, data_set_states
from .completion import assemble, complete
from .files import Library
from .image_data import ImageData, Provenance
from .load import NAMES, load_data
from .partition import Partition
from .split import Split
from .steps import (
    Binarize,
    Dequantize,
    Grey,
    HorizontalFlip,
    Logit,
    MeanCentre,
    PixelInfo,
    Resize,
    Step,
    Threshold,
    ToSigned,
    ToUnit,
)

__all__ = [
    "NAMES",
    "Binarize",
    "DataSetState",
    "Dequantize",
    "Grey",
    "HorizontalFlip",
    "ImageData",
    "Library",
    "Logit",
    "MeanCentre",
    "Partition",
    "PixelInfo",
    "Provenance",
    "Resize",
    "Split",
    "Step",
    "Threshold",
    "ToSigned",
    "ToUnit",
    "assemble",
    "complete",
    "data_set_states",
    "from_tensors",
    "load_data",
]
