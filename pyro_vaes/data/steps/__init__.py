"""Preprocessing: small callables from a batch of images to a batch of images, with their log-determinants."""

from .base import PixelInfo, Step
from .geometry import Grey, HorizontalFlip, Resize
from .levels import Binarize, Dequantize, Threshold
from .pixelwise import Logit, MeanCentre, ToSigned, ToUnit

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
