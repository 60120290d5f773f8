r"""The Gaussian-mixture deep generative model (GM-DGM), and M2: clusters or classes in front of a deep model.

    GM-DGM    y ~ Cat(pi),    z | y ~ N(mu[y], diag sig[y]²),    x ~ r(x | f(z))
    M2        y ~ Cat(pi),    z ~ N(0, I),                       x ~ r(x | f(z, y))
    both      q(y | x) q(z | x, y)

The bound sums over y: with one z_y ~ q(z | x, y) for each y,

    sum_y q(y | x) [ log p(x | z_y, y) + log pi_y + log p(z_y | y) - log q(z_y | x, y) ] + H(q(y | x))

and takes K passes of the decoder. What is labelled pays the term of its own y alone, and the classification term.

References:
    | Semi-Unsupervised Learning: Clustering and Classifying using Ultra-Sparse Labels (Willetts et al., 2019)
    | https://arxiv.org/abs/1901.08560
    | Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014), for M2
    | https://arxiv.org/abs/1406.5298
"""

import pyro
import torch
from pyro.distributions import Categorical, TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import MixturePrior, ProgramModule, StandardNormal, as_posterior, observe

from .cluster_sites import as_labels, guess_cluster, one_hot, sample_cluster


class GaussianMixtureDGM(ProgramModule):
    """A mixture model with a deep likelihood; train it with :class:`~pyro.infer.TraceEnum_ELBO`.

    Sites: ``"y"``, ``"z"`` and ``"x"`` in the plate ``"data"``.

    Arguments:
        classifier: ``x -> logits`` of q(y | x), ``(B, K)``.
        encoder: ``(x, one-hot y) -> distribution`` of z; leading dimensions of y are free.
        decoder: ``z -> parameters`` of the likelihood.
        likelihood: ``parameters -> distribution`` of x.
        prior: The mixture, which sets K; the authors' weights are uniform (``learn_weights=False``).
        label_weight: Weight of the classification term; the authors' is ``1.1 n / n_labelled``.

    Example:
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> encoder = Chain(MLP(64 + 5, [32], 32), NormalHead(32, 2))
        >>> prior = MixturePrior(2, 5, learn_weights=False)
        >>> gmdgm = GaussianMixtureDGM(MLP(64, [32], 5), encoder, MLP(2, [32], 64), BernoulliLikelihood(), prior)
        >>> gmdgm.model(size=3).shape, gmdgm.responsibilities(torch.zeros(7, 64)).shape
        (torch.Size([3, 64]), torch.Size([7, 5]))
    """

    def __init__(
        self,
        classifier: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        prior: "MixturePrior | _IndependentClasses",
        *,
        label_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if label_weight < 0:
            raise ValueError(f"label_weight is the weight of a term of the bound, at least 0, but got {label_weight}.")
        self.classifier, self.encoder, self.decoder = classifier, encoder, decoder
        self.likelihood, self.prior, self.label_weight = likelihood, prior, label_weight
        self.num_clusters = prior.num_components

    @pyro_method
    def model(self, x: Tensor | None = None, labels: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program: x with shape ``(B, ...)`` or None; labels ``(B,)``, -1 where there is none."""
        labels = as_labels(labels, x, self.num_clusters)
        with self.data_plate(x, size):
            y = sample_cluster("y", self.prior.weights, labels)
            z = pyro.sample("z", self.prior.component(y))
            return observe("x", self.likelihood(self.decode(z, y)), x)

    @pyro_method
    def guide(self, x: Tensor, labels: Tensor | None = None, **_: object) -> None:
        """The recognition program; same arguments as :meth:`model`."""
        labels = as_labels(labels, x, self.num_clusters)
        with pyro.plate("data", len(x)):
            y = guess_cluster("y", self.cluster_logits(x), labels, self.label_weight)
            pyro.sample("z", as_posterior(self.encoder(x, one_hot(y, self.num_clusters, x))))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The likelihood's parameters given z and y."""
        return self.decoder(z)

    def cluster_logits(self, x: Tensor) -> Tensor:
        """log q(y | x) up to a constant, ``(B, K)``."""
        logits = self.classifier(x)
        if logits.shape[-1] != self.num_clusters:
            raise ValueError(f"There are {self.num_clusters} clusters, but the classifier returns {logits.shape[-1]}.")
        return logits

    def responsibilities(self, x: Tensor) -> Tensor:
        """q(y | x), ``(B, K)``, rows summing to one; no labels enter."""
        return torch.softmax(self.cluster_logits(x), -1)


class M2(GaussianMixtureDGM):
    """The same with classes that enter the decoder, uniform and independent of z.

    Arguments:
        classifier, encoder, likelihood, label_weight: Those of :class:`GaussianMixtureDGM`.
        decoder: ``(z, one-hot y) -> parameters`` of the likelihood.
        latent_dim: Dimension of z.
        num_clusters: K.

    Example:
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> encoder = Chain(MLP(64 + 5, [32], 32), NormalHead(32, 2))
        >>> m2 = M2(MLP(64, [32], 5), encoder, MLP(2 + 5, [32], 64), BernoulliLikelihood(), 2, 5)
        >>> m2.model(size=3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        classifier: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dim: int,
        num_clusters: int,
        *,
        label_weight: float = 0.0,
    ) -> None:
        prior = _IndependentClasses(latent_dim, num_clusters)
        super().__init__(classifier, encoder, decoder, likelihood, prior, label_weight=label_weight)

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        return self.decoder(z, one_hot(y, self.num_clusters, z))


class _IndependentClasses(StandardNormal):
    """N(0, I) in every class, and as many data in each; read like a :class:`MixturePrior`."""

    def __init__(self, dim: int, num_components: int) -> None:
        super().__init__(dim)
        self.num_components = num_components
        self.logits = nn.Buffer(torch.zeros(num_components), persistent=False)

    @property
    def weights(self) -> Categorical:
        return Categorical(logits=self.logits)

    def component(self, y: Tensor) -> TorchDistribution:
        return self()
