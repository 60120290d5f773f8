"""The options of a training run: checked once, written to `run.json`, read back to repeat or resume it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import get_args

from pyro_vaes.cli.names import BOUNDS, GUIDES, LIKELIHOODS, MODELS, NETWORKS, choose
from pyro_vaes.data import ImageData
from pyro_vaes.infer.training.nonfinite import OnNaN

__all__ = ["Options", "whole_numbers"]

REPLACEABLE = ("epochs", "root", "device", "on_nan")
"""What may differ when a run is resumed: how long, where, and what about NaN; the rest defines the run."""


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """Positive whole numbers with commas between them.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> whole_numbers("16,8", "latent-dim")
        (16, 8)
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(
            f"--{name} takes positive whole numbers with commas between them, such as 16,8, but got {text!r}."
        )
    return numbers


@dataclass(frozen=True, kw_only=True)
class Options:
    """What defines a training run; the names are those of the command line.

    Arguments:
        data: The name of a data set, or a path, as for `pyro_vaes.data.load_data`.
        root: The folder of the data files.
        resize: Height and width to bring images to.
        grey: Whether to make colour images grey.
        key, label_key, image_shape: For files of arrays: the names of images and labels, and the shape (C, H, W).
        limit: Use only so many training rows.
        split_seed: Seed of the split into training, validation and test rows.
        binarize: Dynamic binarisation of grey pixels.
        model, network, likelihood, guide, bound: Names, see `pyro-vaes list`; the likelihood depends on the pixels
            unless given.
        latent_dim: Dimension of the latents, level by level from the data upwards.
        hidden: Widths of the networks; empty for the default of the network.
        skip, top_down: For the hierarchy: skip connections, and a guide that runs from the top.
        particles: Draws per datum in the bound; 0 for the default of the bound.
        free_bits: Nats per site that cost nothing, for the bound of that name.
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        lr: Learning rate of Adam.
        kl_warmup: Epochs over which the KL weight rises to 1.
        patience: Epochs without a better held-out loss before training stops; 0 for never.
        clip: Largest gradient norm; 0 for any.
        seed: Seed of weights, order and noise.
        device: Where to train, such as `cpu` or `cuda`.
        on_nan: `raise`, `skip` or `rollback`.

    Raises:
        ValueError: If a name is unknown, or a number out of range.

    Example:
        >>> Options(model="vea")
        Traceback (most recent call last):
            ...
        ValueError: there is no model 'vea': did you mean 'vae'? The names are vae, conditional_vae, hierarchical_vae.
    """

    data: str = "digits"
    root: str | None = None
    resize: int | None = None
    grey: bool = False
    key: str | None = None
    label_key: str | None = None
    image_shape: tuple[int, ...] | None = None
    limit: int | None = None
    split_seed: int = 0
    binarize: bool = False
    model: str = "vae"
    network: str = "mlp"
    likelihood: str | None = None
    guide: str = "own"
    bound: str = "trace"
    latent_dim: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    skip: bool = False
    top_down: bool = False
    particles: int = 0
    free_bits: float = 0.5
    epochs: int = 50
    batch_size: int = 128
    lr: float = 1e-3
    kl_warmup: int = 0
    patience: int = 0
    clip: float = 0.0
    seed: int = 0
    device: str | None = None
    on_nan: OnNaN = "raise"

    def __post_init__(self) -> None:
        choose("model", self.model, MODELS)
        choose("network", self.network, NETWORKS)
        choose("guide", self.guide, GUIDES)
        choose("bound", self.bound, BOUNDS)
        choose("answer to NaN (--on-nan)", self.on_nan, dict.fromkeys(get_args(OnNaN)))
        if self.likelihood is not None:
            choose("likelihood", self.likelihood, LIKELIHOODS)
        for name in ("epochs", "batch_size", "resize", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{_flag(name)} is {getattr(self, name)}, but at least 1 is wanted.")
        for name in ("particles", "kl_warmup", "patience", "clip", "free_bits"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{_flag(name)} is {getattr(self, name)}, but it cannot be negative; 0 is without.")
        if self.image_shape is not None and len(self.image_shape) != 3:
            raise ValueError(
                f"--image-shape is {self.image_shape}, but channels, height and width are wanted: 1,28,28."
            )
        if not self.lr > 0:
            raise ValueError(f"--lr is {self.lr}, but a learning rate is positive: 1e-3 is usual for Adam.")
        if self.kl_warmup and not BOUNDS[self.bound].has_kl:
            raise ValueError(
                f"--kl-warmup weighs the KL term, which --bound {self.bound} has not: leave it out, or choose --bound "
                "trace."
            )
        if len(self.latent_dim) > 1 and self.model != "hierarchical_vae":
            raise ValueError(
                f"--latent-dim has {len(self.latent_dim)} levels, but {self.model} has one: give one number, or "
                "choose --model hierarchical_vae."
            )
        if (self.skip or self.top_down) and self.model != "hierarchical_vae":
            raise ValueError(f"--skip and --top-down are for --model hierarchical_vae, but the model is {self.model}.")

    def resolved(self, data: ImageData) -> "Options":
        """The same with every default that depends on the data or on other options filled in."""
        low, high = data.value_range
        likelihood = self.likelihood
        if likelihood is None:
            in_unit = low >= 0 and high <= 1
            likelihood = (
                "bernoulli" if data.info.levels == 2 and in_unit else "continuous_bernoulli" if in_unit else "gaussian"
            )
        return replace(
            self,
            likelihood=likelihood,
            latent_dim=self.latent_dim or ((16, 8) if self.model == "hierarchical_vae" else (16,)),
            hidden=self.hidden or NETWORKS[self.network][0].default,
            particles=self.particles or BOUNDS[self.bound].particles,
        )

    def command(self, out: str) -> str:
        """The command that repeats the run."""
        words = ["pyro-vaes", "train", self.data]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "data" or value == field.default:
                continue
            words.append(f"--{_flag(field.name)}")
            if not isinstance(value, bool):
                words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        return shlex.join([*words, "--out", out])

    def to_json(self) -> dict[str, object]:
        """Plain values by name."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Options":
        """Options from what :meth:`to_json` returned.

        Raises:
            ValueError: If they are not the options of a run.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"the options lack {sorted(known - set(values)) or 'nothing'} and hold the unknown "
                f"{sorted(set(values) - known) or 'nothing'}"
            )
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})  # type: ignore[arg-type]


def _flag(name: str) -> str:
    return name.replace("_", "-")
