"""The options of a training run: checked once, written to `run.json`, read back to repeat or resume it."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_args, get_type_hints

import typer
from pyro.infer import ELBO
from typer import Option

from pyro_vaes.data import ImageData
from pyro_vaes.infer import Compile, OnNaN, facts_of

from .names import BOUNDS, NETWORKS, TABLES, choose, suitable_likelihood

REPLACEABLE = ("epochs", "root", "device", "on_nan", "compile")
"""What may differ when a run is resumed: how long, where, how quickly, and what about NaN; the rest defines the run."""

ENGINES: dict[str, Compile] = {
    "auto": "auto",
    "capture": "capture",
    "yes": True,
    "no": False,
}
"""What may be typed for --compile."""

NUMBERS = ("latent_dim", "hidden", "image_shape")
"""What is typed as numbers with commas between them."""

Root = Annotated[str | None, Option(help="The folder of the data files, if it is not the one recorded or found.")]
Device = Annotated[str | None, Option(help="The device to compute on, such as cuda.", show_default="cpu")]


def flag(name: str) -> str:
    """The option of a parameter.

    Example:
        >>> flag("latent_dim")
        '--latent-dim'
    """
    return f"--{name.replace('_', '-')}"


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """Positive whole numbers with commas between them.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> whole_numbers("16,8", "latent_dim")
        (16, 8)
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(
            f"{flag(name)} takes positive whole numbers with commas between them, such as 16,8, but got {text!r}."
        )
    return numbers


@dataclass(frozen=True, kw_only=True)
class Options:
    """What defines a training run: one field for each option of `pyro-vaes train`, with its help text.

    Raises:
        ValueError: If a name is unknown, or a number is out of range.

    Example:
        >>> Options(model="vea")
        Traceback (most recent call last):
            ...
        ValueError: there is no model 'vea': did you mean 'vae'? The names are vae, conditional_vae, hierarchical_vae.
    """

    data: Annotated[
        str,
        typer.Argument(help="The name of a data set (see `list`), a .npz, .npy or .mat file, or a folder of images."),
    ] = "digits"
    model: Annotated[str, Option(help="The name of the model; `list` shows all names.")] = "vae"
    network: Annotated[str, Option(help="The name of the networks.")] = "mlp"
    likelihood: Annotated[
        str | None, Option(help="The name of the likelihood.", show_default="one that suits the pixels")
    ] = None
    guide: Annotated[str, Option(help="The name of the guide; `own` is the one that comes with the model.")] = "own"
    bound: Annotated[str, Option(help="The name of the bound.")] = "trace"
    latent_dim: Annotated[
        tuple[int, ...],
        Option(help="The dimension of the latents; 16,8 means two levels, from the data upwards.", show_default="16"),
    ] = ()
    hidden: Annotated[
        tuple[int, ...],
        Option(
            help="The widths of the hidden layers, as in 500,500 (mlp), or their channels, as in 32,64 (conv).",
            show_default="those of the network",
        ),
    ] = ()
    skip: Annotated[bool, Option("--skip", help="Add skip connections to the hierarchical model.")] = False
    top_down: Annotated[bool, Option("--top-down", help="Let the guide of the hierarchy run from the top.")] = False
    particles: Annotated[int, Option(help="The number of draws per datum in the bound; 0 for its default.")] = 0
    free_bits: Annotated[float, Option(help="How many nats per site cost nothing, in the bound of that name.")] = 0.5
    epochs: Annotated[int, Option(help="The number of passes over the training rows.")] = 50
    batch_size: Annotated[int, Option(help="The number of rows per step.")] = 128
    lr: Annotated[float, Option(help="The learning rate of Adam.")] = 1e-3
    kl_warmup: Annotated[int, Option(help="The number of epochs over which the weight of the KL rises to 1.")] = 0
    patience: Annotated[
        int, Option(help="Stop after this number of epochs without a better held-out loss; 0 for never.")
    ] = 0
    clip: Annotated[float, Option(help="The largest norm that a gradient may have; 0 for any.")] = 0.0
    seed: Annotated[int, Option(help="The random seed for weights, order and noise.")] = 0
    split_seed: Annotated[int, Option(help="The random seed for the split into parts.")] = 0
    binarize: Annotated[bool, Option("--binarize", help="Draw binary pixels anew in each epoch.")] = False
    resize: Annotated[int | None, Option(help="The height and width to bring the images to.")] = None
    grey: Annotated[bool, Option("--grey", help="Make colour images grey.")] = False
    key: Annotated[str | None, Option(help="The name of the images in a file of arrays.")] = None
    label_key: Annotated[str | None, Option(help="The name of the labels in a file of arrays.")] = None
    image_shape: Annotated[
        tuple[int, int, int] | None, Option(help="The shape of one image in a file of arrays, such as 1,28,28.")
    ] = None
    limit: Annotated[int | None, Option(help="Use only this number of training rows.")] = None
    root: Root = None
    device: Device = None
    compile: Annotated[
        str,
        Option(help="How steps run: auto, capture (as graphs), yes (compiled), no."),
    ] = "auto"
    on_nan: Annotated[OnNaN, Option(help="What to do about a loss that is NaN: raise, skip or rollback.")] = "raise"

    def __post_init__(self) -> None:
        for kind, table in TABLES.items():
            name = getattr(self, kind)
            if name is not None:
                choose(kind, name, table)
        choose("engine (--compile)", self.compile, ENGINES)
        choose("answer to NaN (--on-nan)", self.on_nan, dict.fromkeys(get_args(OnNaN)))

        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for name in ("epochs", "batch_size", "resize", "limit"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{flag(name)} is {number}, but at least 1 is wanted.")

        for name in ("particles", "kl_warmup", "patience", "clip", "free_bits"):
            number = getattr(self, name)
            if not number >= 0:
                raise ValueError(f"{flag(name)} is {number}, but it cannot be negative; 0 is without.")

        if not self.lr > 0:
            raise ValueError(f"--lr is {self.lr}, but a learning rate is positive: 1e-3 is usual for Adam.")
        if self.image_shape is not None and len(self.image_shape) != 3:
            raise ValueError(
                f"--image-shape is {self.image_shape}, but channels, height and width are wanted: 1,28,28."
            )

    def _check_combinations(self) -> None:
        if self.kl_warmup and not facts_of(self.loss()).has_kl:
            raise ValueError(
                f"--kl-warmup weighs the KL term, which --bound {self.bound} has not: leave it out, or choose --bound "
                "trace."
            )

        if self.model == "hierarchical_vae":
            return
        if len(self.latent_dim) > 1:
            raise ValueError(
                f"--latent-dim has {len(self.latent_dim)} levels, but {self.model} has one: give one number, or "
                "choose --model hierarchical_vae."
            )
        if self.skip or self.top_down:
            raise ValueError(f"--skip and --top-down are for --model hierarchical_vae, but the model is {self.model}.")

    def loss(self) -> ELBO:
        """The bound, with its own number of particles where none is given."""
        entry = BOUNDS[self.bound]
        return entry.build(self.particles or entry.particles, self.free_bits)

    def resolved(self, data: ImageData) -> "Options":
        """The same with every default that depends on the data or on other options filled in."""
        return replace(
            self,
            likelihood=self.likelihood or suitable_likelihood(data.info, self.guide),
            latent_dim=self.latent_dim or ((16, 8) if self.model == "hierarchical_vae" else (16,)),
            hidden=self.hidden or NETWORKS[self.network].build.default,
            particles=self.particles or BOUNDS[self.bound].particles,
        )

    def command(self, out: str) -> str:
        """The command that repeats the run."""
        words = ["pyro-vaes", "train", self.data]

        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "data" or value == field.default:
                continue

            words.append(flag(field.name))
            if isinstance(value, tuple):
                words.append(",".join(map(str, value)))
            elif not isinstance(value, bool):
                words.append(str(value))
        return shlex.join([*words, "--out", out])

    def to_json(self) -> dict[str, object]:
        """Plain values by name."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Options":
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
        plain: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**plain)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every field of `Options`, beside its own parameters, as an option to type.

    Arguments:
        command: A function whose first parameter is the context; it gets the fields as `**typed`.
    """
    hints = get_type_hints(Options, include_extras=True)
    options = []
    for field in fields(Options):
        kind, option = get_args(hints[field.name])
        default = field.default

        if field.name in NUMBERS:
            kind, default = str | None, None
        elif kind is OnNaN:  # `choose` answers unknown names
            kind = str

        name, keyword = field.name, Parameter.KEYWORD_ONLY
        annotation: object = Annotated[kind, option]
        options.append(Parameter(name, keyword, default=default, annotation=annotation))

    context, *own, _ = signature(command).parameters.values()
    vars(command)["__signature__"] = Signature([context, *options, *own])  # read by typer
    return command


def as_values(typed: Mapping[str, object]) -> dict[str, Any]:
    """Values of the fields from what was typed; numbers that were not are left out."""
    values = dict(typed)
    for name in NUMBERS:
        text = values.pop(name)
        if text:
            values[name] = whole_numbers(str(text), name)
    return values
