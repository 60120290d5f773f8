"""Preprocessing: small callables from a batch of images to a batch of images, with their log-determinants."""

from pyro_vaes.data.steps.base import PixelInfo, Step
from pyro_vaes.data.steps.binarize import Binarize, Threshold
from pyro_vaes.data.steps.dequantize import Dequantize
from pyro_vaes.data.steps.geometry import Grey, HorizontalFlip, Resize
from pyro_vaes.data.steps.logit import Logit
from pyro_vaes.data.steps.scale import MeanCentre, ToSigned, ToUnit

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
