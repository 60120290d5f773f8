r"""Variational ladder clustering (VLAC): a ladder with a mixture as the prior of each rung.

    y_l ~ Cat(pi_l),    z_l | y_l ~ N(mu_l[y_l], Sigma_l[y_l]),    x ~ r(x | ladder(z_1 .. z_L))

With h_l the path of the ladder there are three forms of q, in the order of their bounds:

    A    q(z_l | h_{l-1}), and y_l summed out in p(z_l); it implies q(y_l | z_l) = p(y_l | z_l)
    B    q(y_l | h_{l-1}) q(z_l | h_{l-1}), by a classifier or at its optimum
         q*(y_l = k) ~ pi_lk exp E_{q(z_l)} log N(z_l; mu_lk, Sigma_lk)
    C    q(y_l | h_{l-1}) q(z_l | h_{l-1}, y_l), whose bound takes prod_l K_l passes of the decoder

The authors' own q is not known: their code was never published. (Site ``z_1`` is nearest the data.)

References:
    | Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019)
    | https://arxiv.org/abs/1909.11501
    | Multi-Facet Clustering Variational Autoencoders (Falck et al., 2021), for the optimum of form B
    | https://arxiv.org/abs/2106.05241
"""

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import MixturePrior, as_posterior, observe

from .cluster_sites import (
    as_labels,
    guess_cluster,
    observe_cluster,
    one_hot,
    sample_cluster,
)
from .ladder import LadderVAE


class LadderClusteringVAE(LadderVAE):
    """A ladder whose rungs cluster the data, each by what it codes.

    ``model`` and ``guide`` are those of :class:`LadderVAE`, with mixtures as priors and no site for clusters: form A
    for any bound and guide, with labels or without, and the one to train with. (There is no closed KL for a mixture:
    ``TraceMeanField_ELBO`` draws.) ``cluster_model`` is the same p with the sites ``"y_1" .. "y_L"``, marked for
    enumeration: with ``guide`` it is form A again, with ``cluster_guide`` form B or C, both for
    :class:`~pyro.infer.TraceEnum_ELBO`. In forms A and B the decoder runs once for each datum, however many clusters
    and rungs there are.

    Arguments:
        encoders, rungs, merges, decoders, likelihood, latent_dims: Those of :class:`LadderVAE`; in form C the rungs
            take one-hot clusters too, ``(h_{l-1}, y_l) -> distribution``.
        priors: L mixtures; the numbers K_l of clusters are theirs.
        classifiers: L modules ``h_{l-1} -> logits`` of q(y_l | x), ``(B, K_l)``, for forms B and C; None for the
            closed-form optimum, which needs rungs that return diagonal normals.
        clusters_to_rungs: Form C, which needs classifiers.
        labelled_rung: The rung that labels belong to, 1 .. L; the top one by default.
        label_weight: Weight of the classification term in forms B and C; in the authors' code for one level
            ``1.1 n / n_labelled``.

    Raises:
        ValueError: The parts do not fit together.

    Example:
        >>> from pyro_vaes.nn import BernoulliLikelihood, mlp_ladder
        >>> priors = [MixturePrior(2, 6), MixturePrior(3, 4)]
        >>> vlac = LadderClusteringVAE(*mlp_ladder(64, [2, 3], width=16), BernoulliLikelihood(), [2, 3], priors=priors)
        >>> [r.shape for r in vlac.responsibilities(torch.zeros(5, 64))]
        [torch.Size([5, 6]), torch.Size([5, 4])]
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        rungs: Sequence[nn.Module],
        merges: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        likelihood: nn.Module,
        latent_dims: Sequence[int],
        *,
        priors: Sequence[MixturePrior],
        classifiers: Sequence[nn.Module] | None = None,
        clusters_to_rungs: bool = False,
        labelled_rung: int | None = None,
        label_weight: float = 0.0,
    ) -> None:
        super().__init__(encoders, rungs, merges, decoders, likelihood, latent_dims, priors=priors)
        levels = len(latent_dims)
        labelled_rung = levels if labelled_rung is None else labelled_rung

        wrong = [type(p).__name__ for p in priors if not isinstance(p, MixturePrior)]
        if wrong or [p.dim for p in priors] != list(latent_dims):
            raise ValueError(
                f"The priors must be MixturePriors of {list(latent_dims)} dimensions, but got "
                f"{wrong or [p.dim for p in priors]}. Where a rung is not to cluster, MixturePrior(dim, 1) is a normal."
            )

        if classifiers is not None and len(classifiers) != levels:
            raise ValueError(f"{levels} rungs need {levels} classifiers, but got {len(classifiers)}.")
        if clusters_to_rungs and classifiers is None:
            raise ValueError("Rungs that take clusters have no closed-form q(y): form C needs classifiers.")
        if not 1 <= labelled_rung <= levels or label_weight < 0:
            raise ValueError(
                f"labelled_rung is one of 1..{levels} and label_weight at least 0, but got {labelled_rung} and "
                f"{label_weight}."
            )

        self.classifiers = None if classifiers is None else nn.ModuleList(classifiers)
        self.clusters_to_rungs, self.labelled_rung, self.label_weight = clusters_to_rungs, labelled_rung, label_weight

    @property
    def mixtures(self) -> list[MixturePrior]:
        """The priors of z_1, .., z_L."""
        return [prior for prior in self.priors if isinstance(prior, MixturePrior)]

    @property
    def num_clusters(self) -> tuple[int, ...]:
        """K_1, .., K_L."""
        return tuple(prior.num_components for prior in self.mixtures)

    @pyro_method
    def model(self, x: Tensor | None = None, labels: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program with mixtures as priors; ``labels`` with shape ``(B,)``, -1 where there is none.

        A label y makes p(z, y) = pi_y N(z; mu_y, Sigma_y) of the prior on its rung: the bound is that of
        :meth:`cluster_model` with enumeration, draw by draw. A KL weight of the rung weighs the label too.
        """
        labels = as_labels(labels, x, self.num_clusters[self.labelled_rung - 1])
        with self.data_plate(x, size):
            z = []
            for level, mixture in enumerate(self.mixtures, start=1):
                prior = mixture()
                z.append(pyro.sample(f"z_{level}", prior))
                if labels is not None and level == self.labelled_rung:
                    observe_cluster(f"y_{level}", f"z_{level}", prior.log_joint(z[-1]), labels)
            return observe("x", self.likelihood(self.decode(z)), x)

    @pyro_method
    def guide(self, x: Tensor, labels: Tensor | None = None, **_: object) -> None:
        """Form A: the rungs, for :meth:`model` and :meth:`cluster_model`; the labels, theirs, are not used here."""
        super().guide(x)

    @pyro_method
    def cluster_model(self, x: Tensor | None = None, labels: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program with clusters; ``labels`` with shape ``(B,)``, -1 where there is none."""
        labels = as_labels(labels, x, self.num_clusters[self.labelled_rung - 1])
        with self.data_plate(x, size):
            z = []
            for level, prior in enumerate(self.mixtures, start=1):
                y = sample_cluster(f"y_{level}", prior.weights, labels if level == self.labelled_rung else None)
                z.append(pyro.sample(f"z_{level}", prior.component(y)))
            return observe("x", self.likelihood(self.decode(z)), x)

    @pyro_method
    def cluster_guide(self, x: Tensor, labels: Tensor | None = None, **_: object) -> None:
        """Form B or C; same arguments as :meth:`cluster_model`."""
        labels = as_labels(labels, x, self.num_clusters[self.labelled_rung - 1])
        path = self.path(x)
        with pyro.plate("data", len(x)):
            for level, logits in enumerate(self.cluster_logits(x), start=1):
                known = labels if level == self.labelled_rung else None
                y = guess_cluster(f"y_{level}", logits, known, self.label_weight)
                rung, h = self.rungs[level - 1], path[level - 1]
                q = rung(h, one_hot(y, logits.shape[-1], h)) if self.clusters_to_rungs else rung(h)
                pyro.sample(f"z_{level}", as_posterior(q, f"the rung of z_{level}"))

    def posteriors(self, x: Tensor) -> list[TorchDistribution]:
        """q(z_1 | x), .., q(z_L | x) of forms A and B, each with batch shape ``(B,)`` and event shape ``(d_l,)``.

        Raises:
            ValueError: In form C, where z_l is drawn given y_l.
        """
        if self.clusters_to_rungs:
            raise ValueError(
                "These rungs take clusters, so that they have no posterior of z given x alone: use cluster_guide "
                "(form C). To start a mixture, give its own start_from codes of a ladder without clusters?"
            )
        return super().posteriors(x)

    def cluster_logits(self, x: Tensor) -> list[Tensor]:
        """log q(y_l = k | x) up to a constant, each ``(B, K_l)``: the classifiers', or the optimum of form B."""
        if self.classifiers is None:
            return [p.expected_log_joint(q) for p, q in zip(self.mixtures, self.posteriors(x), strict=True)]
        return [classifier(h) for classifier, h in zip(self.classifiers, self.path(x), strict=True)]

    def responsibilities(self, x: Tensor) -> list[Tensor]:
        """Which cluster a datum belongs to on each rung, ``(B, K_l)``, rows summing to one; no labels enter.

        The classifiers' q(y_l | x) where there are some, else p(y_l | z_l) at the mean of q(z_l | x).
        """
        if self.classifiers is not None:
            return [torch.softmax(logits, -1) for logits in self.cluster_logits(x)]
        return [p().responsibilities(q.mean) for p, q in zip(self.mixtures, self.posteriors(x), strict=True)]

    def start_from(self, x: Tensor, *, rungs: Sequence[int] | None = None, **options: object) -> None:
        """Put the clusters of these rungs (all by default) where the codes of ``x`` lie.

        Arguments:
            x: Data with shape ``(N, ...)``, of which some thousands are enough.
            rungs: Numbers from 1 to L.
            options: The other arguments of :meth:`MixturePrior.start_from`.

        Raises:
            ValueError: In form C, whose codes are drawn given clusters.
        """
        with torch.no_grad():
            codes = [q.mean for q in self.posteriors(x)]
        for level in range(1, len(codes) + 1) if rungs is None else rungs:
            start: Callable[..., None] = self.mixtures[level - 1].start_from
            start(codes[level - 1], **options)
