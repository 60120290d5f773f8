"""Preprocessing: small callables from a batch of images to a batch of images, with their log-determinants."""

from .base import PixelInfo, Step
from .binarize import Binarize, Threshold
from .dequantize import Dequantize
from .geometry import Grey, HorizontalFlip, Resize
from .logit import Logit
from .scale import MeanCentre, ToSigned, ToUnit

__all__ = [
    "Binarize",
    "Dequantize",
    "Grey",
    "HorizontalFlip",
    "Logit",
    "MeanCentre",
    "PixelInfo",
    "Resize",
    "Step",
    "Threshold",
    "ToSigned",
    "ToUnit",
]
