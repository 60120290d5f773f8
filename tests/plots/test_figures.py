"""Curves, bars and panels: the numbers drawn are the numbers given, and nothing global changes."""

from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch

from pyro_vaes import plots


def test_kl_bars_are_sorted_and_the_title_counts_them() -> None:
    ax = plots.kl_bars(torch.tensor([0.001, 2.0, 0.5]), threshold=0.01)
    assert [bar.get_height() for bar in ax.containers[0]] == pytest.approx([2.0, 0.5, 0.001])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "0"]
    assert ax.get_title(loc="left") == "2 of 3 units active, 2.5 nats in all"
    colours = [bar.get_facecolor() for bar in ax.containers[0]]
    assert colours[0] == colours[1] != colours[2]
    (line,) = ax.lines
    assert line.get_ydata()[0] == 0.01


def test_kl_bars_of_many_units_and_of_named_ones() -> None:
    assert len(plots.kl_bars(torch.rand(60)).containers[0]) == 60
    ax = plots.kl_bars(torch.tensor([1.0, 2.0]), names=["z_1[0]", "z_2[0]"], title="Ladder")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["z_2[0]", "z_1[0]"]
    assert ax.get_title(loc="left") == "Ladder"


def test_collapse_curves_are_the_numbers_given() -> None:
    epsilon = np.logspace(-3, 1, 9)
    fraction = np.stack((np.linspace(0, 1, 9), np.linspace(0, 0.5, 9)))
    ax = plots.collapse_curve(epsilon, fraction, labels=["one", "two"])
    for line, curve in zip(ax.lines, fraction, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curve)
    assert ax.get_xscale() == "log"
    assert plots.collapse_curve(epsilon[:3], fraction[0, :3]).get_xscale() == "linear"


def test_loss_curves_mark_the_best_epoch() -> None:
    history = SimpleNamespace(epochs=[5, 6, 7, 8], train=[4.0, 3.0, 2.0, 1.0], valid=[4.0, 3.5, None, 3.7])
    ax = plots.loss_curves(history)
    train, valid, best = ax.lines
    np.testing.assert_array_equal(train.get_xdata(), [5, 6, 7, 8])
    np.testing.assert_array_equal(valid.get_xdata(), [5, 6, 8])
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (6, 3.5)
    assert ax.get_ylabel() == "loss (nats per datum)"
    assert "epoch 6" in ax.get_title(loc="left")


def test_loss_curves_without_held_out_data() -> None:
    ax = plots.loss_curves(SimpleNamespace(epochs=[1], train=[4.0], valid=[]))
    assert len(ax.lines) == 1


def test_ppc_panels_give_the_p_values() -> None:
    observed = torch.zeros(4, 2)
    replicated = torch.stack([torch.full((4, 2), float(level)) for level in (-1, 0, 1, 2)])
    axes = plots.ppc_panels(observed, replicated, {"mean": torch.mean, "largest": torch.max})
    assert axes.shape == (3,)
    for panel in axes[1:]:
        assert panel.get_title(loc="left") == "p = 0.62"  # two above, one of four equal: 0.5 + 0.125
        assert panel.lines[0].get_xdata()[0] == 0.0
        assert sum(bar.get_height() for bar in panel.patches) == 4


def test_ppc_densities_integrate_to_one() -> None:
    axes = plots.ppc_panels(torch.randn(500, 3), torch.randn(60, 500, 3))
    assert len(axes) == 4
    lines = [line for line in axes[0].lines if len(line.get_xdata())]
    assert len(lines) == 41  # at most forty replicates and the data
    x, density = lines[-1].get_data()
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1.0, abs=0.01)  # 0.2 % lie beyond the quantiles shown


def test_ppc_of_counts_has_one_point_for_each_count() -> None:
    axes = plots.ppc_panels(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[[0, 1], [1, 1]]]), {"largest": torch.max})
    np.testing.assert_allclose(axes[0].lines[-1].get_ydata(), [0.25, 0.5, 0.25])


def test_khat_zones() -> None:
    ax = plots.khat(torch.tensor([0.1, 0.5, 0.6, 0.7, 0.9, torch.nan], dtype=torch.float64))
    assert [len(zone.get_offsets()) for zone in ax.collections] == [2, 1, 3]
    assert "50 % of 6" in ax.get_title(loc="left")
    assert ax.get_legend().get_texts()[-1].get_text() == "not reliable: 3 (1 not finite)"


def test_uniform_ranks_are_flat_and_skewed_ones_red() -> None:
    flat = plots.rank_hist(torch.arange(1000) % 100, num_samples=99, bins=10)
    assert [bar.get_height() for bar in flat.containers[0]] == pytest.approx([1.0] * 10)
    assert len({bar.get_facecolor() for bar in flat.containers[0]}) == 1
    skewed = plots.rank_hist(torch.zeros(1000), num_samples=99, bins=10)
    assert skewed.containers[0][0].get_height() == pytest.approx(10.0)
    assert skewed.containers[0][0].get_facecolor() != flat.containers[0][0].get_facecolor()


def test_rank_band_is_binomial_when_bins_differ_in_width() -> None:
    ax = plots.rank_hist(torch.arange(900) % 9, num_samples=8, bins=4, level=0.9)  # nine ranks in four bins
    widths = np.array([bar.get_width() for bar in ax.containers[0]])
    assert widths.sum() == 9
    assert [bar.get_height() for bar in ax.containers[0]] == pytest.approx([1.0] * 4)
    band = ax.patches[0].get_data()
    np.testing.assert_allclose(band.values, scipy.stats.binom.ppf(0.95, 900, widths / 9) / (100 * widths))


def test_expected_coverage_is_the_numbers_given_within_a_binomial_band() -> None:
    levels = np.linspace(0, 1, 11)
    ax = plots.expected_coverage(levels, levels**2, 400)
    diagonal, curve = ax.lines
    np.testing.assert_array_equal(diagonal.get_data(), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(curve.get_data(), [levels, levels**2])
    calibrated = plots.expected_coverage(levels, np.clip(levels + 0.04, 0, 1), 400)
    assert calibrated.lines[1].get_color() != curve.get_color()  # Kolmogorov's 5 % for 400 numbers: 0.0677
    assert plots.expected_coverage(levels, np.clip(levels + 0.08, 0, 1), 400).lines[1].get_color() == curve.get_color()
    band = ax.collections[0].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5)][:, 1]
    wanted = scipy.stats.binom.ppf([0.025, 0.975], 400, 0.5) / 400
    np.testing.assert_allclose([at_half.min(), at_half.max()], wanted)
    several = plots.expected_coverage(levels, np.stack((levels, levels**2)), 400, labels=["one", "two"])
    assert len(several.lines) == 3 and several.get_legend().get_texts()[-1].get_text() == "two"


VECTOR = torch.arange(3.0)
CALLS = {
    "image_grid": lambda ax: plots.image_grid(torch.rand(4, 16), ax=ax),
    "reconstructions": lambda ax: plots.reconstructions(torch.rand(4, 16), torch.rand(4, 16), ax=ax),
    "samples": lambda ax: plots.samples(torch.rand(4, 16), ax=ax),
    "traversals": lambda ax: plots.traversals(lambda z: z.new_zeros(len(z), 16), torch.zeros(2), ax=ax),
    "variants": lambda ax: plots.variants(lambda z: z.new_zeros(len(z), 16), torch.zeros(2), torch.ones(2), ax=ax),
    "transitions": lambda ax: plots.transitions(
        lambda z: z.new_zeros(len(z), 16), torch.zeros(2), torch.ones(2), ax=ax
    ),
    "manifold": lambda ax: plots.manifold(lambda z: z.new_zeros(len(z), 16), steps=3, ax=ax),
    "latent_scatter": lambda ax: plots.latent_scatter(torch.rand(30, 2), torch.arange(30) % 15, ax=ax),
    "posterior_against_prior": lambda ax: plots.posterior_against_prior(torch.rand(9, 2), torch.rand(9, 2), ax=ax),
    "kl_bars": lambda ax: plots.kl_bars(VECTOR, ax=ax),
    "collapse_curve": lambda ax: plots.collapse_curve(VECTOR, VECTOR / 2, ax=ax),
    "loss_curves": lambda ax: plots.loss_curves(
        SimpleNamespace(epochs=[1, 2], train=[2.0, 1.0], valid=[2.0, 3.0]), ax=ax
    ),
    "ppc_panels": lambda ax: plots.ppc_panels(torch.rand(9, 2), torch.rand(5, 9, 2), {}, axes=[ax])[0],
    "khat": lambda ax: plots.khat(VECTOR, ax=ax),
    "rank_hist": lambda ax: plots.rank_hist(VECTOR, 19, ax=ax),
    "expected_coverage": lambda ax: plots.expected_coverage(VECTOR / 2, VECTOR / 2, 50, ax=ax),
}


FORECASTS = {"kl_forecast", "forecast_scatter", "forecast_bars", "singular_values", "loss_with_thresholds"}
ELSEWHERE = {"level_manifolds", "cluster_cards", "divergence_histogram"} | FORECASTS  # in files of their own
SET_UP = {"chart_axes", "legend"}  # for charts of one's own


def test_every_plot_is_called_here() -> None:
    assert set(CALLS) | ELSEWHERE == set(plots.__all__) - SET_UP


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_draws_into_the_axes_given_and_changes_no_setting(call) -> None:
    before = dict(mpl.rcParams)
    figure, ax = plt.subplots()
    assert call(ax) is ax
    figure.canvas.draw()
    assert len(plt.get_fignums()) == 1
    assert dict(mpl.rcParams) == before


BAD = {
    "a matrix of divergences": (lambda: plots.kl_bars(torch.rand(3, 2)), "Average over the data"),
    "a divergence that is nan": (
        lambda: plots.kl_bars(torch.tensor([1.0, torch.nan])),
        "1 entries not finite",
    ),
    "names of other units": (lambda: plots.kl_bars(VECTOR, names=["a"]), "1 names"),
    "fractions of other epsilons": (lambda: plots.collapse_curve(VECTOR, VECTOR[:2]), "one fraction"),
    "epsilon falls": (lambda: plots.collapse_curve(-VECTOR, VECTOR / 2), "does not ascend"),
    "a percentage": (lambda: plots.collapse_curve(VECTOR, 50 * VECTOR), "percentage"),
    "labels of other curves": (
        lambda: plots.collapse_curve(VECTOR, VECTOR / 2, labels=["a", "b"]),
        "2 names",
    ),
    "no epoch yet": (
        lambda: plots.loss_curves(SimpleNamespace(epochs=[], train=[], valid=[])),
        "one epoch",
    ),
    "losses of other epochs": (
        lambda: plots.loss_curves(SimpleNamespace(epochs=[1, 2], train=[1.0, 2.0], valid=[1.0])),
        "1 held-out losses",
    ),
    "one replicate": (lambda: plots.ppc_panels(torch.rand(9, 2), torch.rand(9, 2)), r"replicated\[None\]"),
    "a statistic for each unit": (
        lambda: plots.ppc_panels(torch.rand(9, 2), torch.rand(5, 9, 2), {"mean": lambda x: x.mean(0)}),
        "single number",
    ),
    "too few axes": (
        lambda: plots.ppc_panels(torch.rand(9, 2), torch.rand(5, 9, 2), axes=[plt.figure().add_subplot()]),
        "wanted 4",
    ),
    "k-hat of a matrix": (lambda: plots.khat(torch.rand(3, 2)), "one Pareto shape"),
    "a rank too high": (lambda: plots.rank_hist(torch.tensor([20.0]), 19), "num_samples=19"),
    "a rank that is no integer": (lambda: plots.rank_hist(torch.tensor([0.5]), 19), "integers"),
    "coverage of other levels": (lambda: plots.expected_coverage(VECTOR / 2, VECTOR[:2] / 2, 9), "one share"),
    "coverage in percent": (lambda: plots.expected_coverage(VECTOR / 2, 50 * VECTOR, 9), "percentage"),
    "levels fall": (lambda: plots.expected_coverage(1 - VECTOR / 2, VECTOR / 2, 9), "does not ascend"),
    "no simulations": (lambda: plots.expected_coverage(VECTOR / 2, VECTOR / 2, 0), "num_simulations"),
    "names of other shares": (lambda: plots.expected_coverage(VECTOR / 2, VECTOR / 2, 9, labels=["a", "b"]), "2 names"),
    "more bins than ranks": (lambda: plots.rank_hist(VECTOR, 4), "5 possible ranks"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_errors_name_the_cure(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
