"""A paper's comparison at several budgets, with its published figures."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pyro_vaes.experiments.comparison import Method, compare
from pyro_vaes.experiments.results import Comparison
from pyro_vaes.experiments.setting import Setting
from pyro_vaes.experiments.study import BUDGETS, chosen_cases

__all__ = ["Experiment", "image_setting"]

DATA = ("digits", "mnist", "fashion_mnist", "omniglot28", "svhn_subset", "cifar10_subset", "svhn", "cifar10")
COLOUR = {"svhn_subset", "cifar10_subset", "svhn", "cifar10"}
SUBSETS = {"svhn_subset", "cifar10_subset"}


def image_setting(budget: str, data: str, output: str) -> Setting:
    """One hidden layer of 256 and a code of 16, or 512 and 32 for colour images, with Adam 5e-4.

    ``"smoke"`` takes seconds; ``"cpu"`` trains for 3 epochs and measures 1000 test images; ``"gpu"`` trains for 100
    and measures all.
    """
    hidden, latent_dim = ((512,), 32) if data in COLOUR else ((256,), 16)
    if budget == "smoke":
        return Setting(data, output, (16,), 4, epochs=1, train_images=512, test_images=64, num_particles=10)
    if budget == "cpu":
        return Setting(data, output, hidden, latent_dim, epochs=3, test_images=1000)
    return Setting(data, output, hidden, latent_dim, epochs=100)


@dataclass(frozen=True)
class Experiment:
    """A paper's comparison of guides.

    Attributes:
        name: Of the paper's method.
        about: What it compares, in one line.
        setting: From budget, data and output to what the methods share.
        methods: From the budget to the methods.
        published: By data and output, log-likelihoods by method and where they come from.
    """

    name: str
    about: str
    setting: Callable[[str, str, str], Setting]
    methods: Callable[[str], Sequence[Method]]
    published: Mapping[tuple[str, str], tuple[Mapping[str, float], str]]

    def run(
        self,
        budget: str = "cpu",
        *,
        data: str | None = None,
        output: str | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        only: Sequence[str] = (),
        root: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        out: str | os.PathLike[str] | None = None,
        about: Mapping[str, object] | None = None,
        progress: bool = True,
    ) -> Comparison:
        """Train, measure, tabulate.

        Arguments:
            budget: ``"smoke"`` (seconds), ``"cpu"`` or ``"gpu"``.
            data: Name of the data set; by default digits for ``"smoke"``, else mnist.
            output: ``"gaussian"``, the default, or ``"bernoulli"``.
            seeds: One run of every method for each; only the first counts for ``"smoke"``.
            only: Names of methods, as in the table, if not all.
            root, device, out, about, progress: As for :func:`~pyro_vaes.experiments.comparison.compare`.

        Raises:
            ValueError: An unknown budget, data set, output or method.
        """
        if budget not in BUDGETS:
            raise ValueError(f"The budgets are {', '.join(BUDGETS)}, but got {budget!r}.")
        data = data or ("digits" if budget == "smoke" else "mnist")
        if data not in DATA:
            raise ValueError(f"This comparison runs on {', '.join(DATA)}, but got {data!r}.")
        output = output or "gaussian"
        if output == "bernoulli" and data in COLOUR:
            raise ValueError(f"Colour images are not binarised, so {data} needs output='gaussian'; or take mnist?")
        setting = self.setting(budget, data, output)
        methods = {m.name: m for m in self.methods(budget)}
        return compare(
            setting,
            list(chosen_cases(methods, only, budget).values()),
            seeds[:1] if budget == "smoke" else seeds,
            root=root,
            device=device,
            out=out,
            published=self.published.get((data, output), ({}, ""))[0],
            remark=self.remark(data, output),
            about={"experiment": self.name, "budget": budget, **(about or {})},
            progress=progress,
        )

    def remark(self, data: str, output: str) -> str:
        """What a reader of the figures must know."""
        notes = [self.published[data, output][1]] if (data, output) in self.published else []
        if data in SUBSETS:
            notes.append(f"{data} is a subset of the published data: no figure on it is one on the full data")
        if output == "gaussian":
            notes.append("Gaussian densities of pixels have no upper bound: other epochs, other figures")
        return ". ".join(notes) + "." * bool(notes)
