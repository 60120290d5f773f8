"""The ladder beside a hierarchy of the same blocks: the paper's setting, the pairs, and the figures of a short run."""

import math

import pytest
import torch
from pyro import poutine

from papers import VARIATIONAL_LADDER
from papers.variational_ladder.ladder import (
    LadderSetting,
    build_hierarchy,
    build_ladder,
    decode,
    kl_warmup,
    setting,
)

NARROW = LadderSetting("mnist", (4, 8), 16)


def test_the_gpu_budget_is_the_papers_setting():
    s = setting("gpu", "mnist")
    assert (s.channels, s.width, s.latent_dims) == ((64, 128), 1024, (2, 2, 2))
    assert (s.loss_ratio, s.lr, s.batch_size, s.train_images) == (8.0, 2e-4, 100, None)
    for update, weight in ((1, 4.9988e-4), (1000, 0.39347), (2000, 0.63212)):
        assert kl_warmup(s).beta(update - 1) == pytest.approx(weight, abs=5e-6)
    scale = build_ladder(NARROW, (1, 28, 28)).likelihood.scale
    assert scale.item() == pytest.approx(1 / 8, rel=1e-6)


def test_the_hierarchy_has_the_ladders_blocks():
    ladder, hierarchy = (build(NARROW, (1, 28, 28)) for build in (build_ladder, build_hierarchy))

    def sizes(*modules):
        return [tuple(p.shape) for m in modules for p in m.parameters()]

    assert sizes(hierarchy.encoders[0]) == sizes(ladder.rungs[0])
    assert sizes(hierarchy.decoder) == sizes(ladder.merges[0].network, ladder.decoders[0])
    assert sizes(hierarchy.encoders[2])[2:] == sizes(ladder.rungs[2])[2:], "all but the first layer, which sees z_2"


@pytest.mark.parametrize("build", [build_ladder, build_hierarchy])
def test_images_are_decoded_from_standard_normal_noise(build):
    """Standardised, the latents of a draw from the model give that draw's mean image."""
    model = build(NARROW, (1, 28, 28)).eval()
    for parameter in model.parameters():  # at the start images hardly depend on the latents
        parameter.data += 0.2 * torch.randn_like(parameter)
    trace = poutine.trace(model.model).get_trace(size=5)
    sites = [trace.nodes[f"z_{level}"] for level in (1, 2, 3)]
    noise = [(s["value"] - s["fn"].base_dist.loc) / s["fn"].base_dist.scale for s in sites]
    torch.testing.assert_close(decode(model, noise), trace.nodes["x"]["fn"].base_dist.loc, rtol=0, atol=1e-5)


def test_smoke(tmp_path):
    found = VARIATIONAL_LADDER.run("smoke", out=tmp_path / "x.json", progress=False)
    assert [r.case for r in found.rows] == ["LADDER", "HVAE", "LADDER, MMD"] and not found.published
    for row in found.rows:
        assert all(math.isfinite(v) for v in row.figures.values())
        accuracies = [f"kNN z_{level} @{epoch}" for epoch in (1, 2) for level in (1, 2, 3)]
        assert [c for c in row.figures if c.startswith("kNN")] == accuracies
        assert all(0 <= row.figures[f"active z_{level}"] <= 2 for level in (1, 2, 3))
    assert len(list((tmp_path / "x").iterdir())) == 6
