"""The Gibbs chain of a hierarchy: exact in tables and in the linear-Gaussian case, measured for a trained one."""

import math
from dataclasses import replace

import pytest
import torch
from pyro.distributions import MultivariateNormal
from torch import nn

from papers import GIBBS_CHAIN, Job
from papers.variational_ladder.gibbs_chain import setting, tables, two_sample_accuracy, walk
from pyro_vaes.models import HierarchicalVAE
from pyro_vaes.nn import GaussianLikelihood, NormalHead

SMOKE = setting("smoke", "digits")


class ExactPosterior(nn.Module):
    """q(z_1 | x) of x = W z_1 + noise with z_1 ~ N(0, S)."""

    def __init__(self, weight, covariance, noise):
        super().__init__()
        evidence = weight @ covariance @ weight.T + noise**2 * torch.eye(len(weight))
        self.gain = covariance @ weight.T @ evidence.inverse()
        self.covariance = covariance - self.gain @ weight @ covariance

    def forward(self, x):
        return MultivariateNormal(x @ self.gain.T, self.covariance)


def test_with_the_exact_posterior_the_chain_leaves_the_model_as_it_is():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    weight, noise, count = torch.randn(3, 2), 0.5, 20_000
    prior, decoder = NormalHead(1, 2, scale=0.7), nn.Linear(2, 3, bias=False)
    nn.init.zeros_(prior.loc.bias)
    decoder.weight.data = weight
    above = prior.loc.weight.detach()
    posterior = ExactPosterior(weight, above @ above.T + 0.49 * torch.eye(2), noise)
    model = HierarchicalVAE([posterior, NormalHead(2, 1)], decoder, GaussianLikelihood(noise), [2, 1], priors=[prior])
    evidence = weight @ (above @ above.T + 0.49 * torch.eye(2)) @ weight.T + noise**2 * torch.eye(3)
    with torch.no_grad():
        x = model.model(size=count)
    spread = evidence.diagonal()
    error = ((spread.outer(spread) + evidence**2) / count).sqrt()  # of an empirical covariance
    for chain in (x, walk(model, x, 3), walk(model, torch.full((count, 3), 4.0), 100)):
        assert ((chain.T @ chain / count - evidence).abs() < 4.5 * error).all()
    assert ((walk(model, torch.full((count, 3), 4.0), 1).mean(0)).abs() > 0.2).all(), "it starts where it is told"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tables_keep_p_and_tend_to_it_where_they_can(seed):
    one, two = (tables(blocks, SMOKE, Job(seed)).figures for blocks in (1, 2))
    assert one["largest |pT - p|"] < 1e-12 and two["largest |pT - p|"] < 1e-12
    assert (one["classes"], two["classes"]) == (1, 2)
    assert one["spectral gap"] > 0.1 and two["spectral gap"] == pytest.approx(0, abs=1e-9)
    later = replace(SMOKE, steps=(1, 10, 100))
    one, two = (
        [tables(blocks, later, Job(seed)).figures[f"total variation @{s}"] for s in later.steps] for blocks in (1, 2)
    )
    assert one == sorted(one, reverse=True) and one[-1] < 1e-6
    assert two[-1] > 0.2, "the other block is never reached"


def test_two_samples_of_one_distribution_look_alike_and_others_do_not():
    torch.manual_seed(0)
    first, second = torch.randn(2, 1000, 4)
    assert abs(two_sample_accuracy(first, second) - 0.5) < 4 * 0.5 / math.sqrt(1000)
    assert two_sample_accuracy(first, second + 1) > 0.7


def test_smoke(tmp_path):
    found = GIBBS_CHAIN.run("smoke", out=tmp_path / "x.json", progress=False)
    assert [r.case for r in found.rows] == ["tables", "tables, two blocks", "HVAE", "HVAE, q fitted on to p"]
    figures = found.rows[-1].figures
    assert {"KL z_1", "KL z_2", "KL z_3", "model | data", "from model | model @3", "from image | model @3"} <= set(
        figures
    )
    assert all(math.isfinite(v) for r in found.rows for v in r.figures.values())
    pictures = sorted(p.name for p in (tmp_path / "x").iterdir())
    assert pictures == ["hvae-1-q-fitted-on-to-p.png", "hvae-1-q.png"]
