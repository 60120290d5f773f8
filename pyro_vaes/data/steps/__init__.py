"""Preprocessing: small callables from a batch of images to a batch of images, with their log-determinants."""

from pyro_vaes.data.steps.base import PixelInfo, Step
from pyro_vaes.data.steps.binarize import Binarize, Threshold
from pyro_vaes.data.steps.dequantize import Dequantize
from pyro_vaes.data.steps.geometry import Grey, Resize
from pyro_vaes.data.steps.logit import Logit
from pyro_vaes.data.steps.scale import MeanCentre, ToUnit

__all__ = [
    "Binarize",
    "Dequantize",
    "Grey",
    "Logit",
    "MeanCentre",
    "PixelInfo",
    "Resize",
    "Step",
    "Threshold",
    "ToUnit",
]
