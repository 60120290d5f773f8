"""Data sets of images as tensors in memory: loading, splitting, preprocessing."""

from pyro_vaes.data.arrays import from_tensors
from pyro_vaes.data.availability import DataSetState, data_set_states
from pyro_vaes.data.completion import assemble, complete
from pyro_vaes.data.files import Library
from pyro_vaes.data.image_data import ImageData
from pyro_vaes.data.load import NAMES, load_data
from pyro_vaes.data.partition import Partition
from pyro_vaes.data.provenance import Provenance
from pyro_vaes.data.split import Split
from pyro_vaes.data.steps import (
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
