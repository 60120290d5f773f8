"""Pictures of the collapse theory: the numbers drawn are the numbers given."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_vaes import plots
from pyro_vaes.theory import linear_vae


def test_kl_forecast_of_numbers_and_of_a_site() -> None:
    kl = torch.tensor([[2.0, 1.0, 0.0], [1.8, 1.1, 0.1]])
    for site in (kl, SimpleNamespace(kl=kl)):
        ax = plots.kl_forecast(site)
        assert [bar.get_height() for bar in ax.containers[0]] == pytest.approx([1.8, 1.1, 0.1])
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [2.0, 1.0, 0.0])
        assert ax.get_title(loc="left") == "3.00 nats forecast, 3.00 measured"
    assert plots.kl_forecast(kl, title="here", ax=ax) is ax and ax.get_title(loc="left") == "here"
    with pytest.raises(ValueError, match=r"wanted \(2, K\)"):
        plots.kl_forecast(kl[0])


def test_singular_values_are_sorted() -> None:
    theory, trained = torch.tensor([[3.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.1, 2.9], [0.1, 2.0]])
    ax = plots.singular_values(theory, trained, labels=["decoder", "encoder"])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [2.9, 1.1], rtol=1e-6)
    assert ax.get_title(loc="left") == "theory and training differ by 0.075 on average"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["decoder", "encoder"]
    with pytest.raises(ValueError, match="Pad the shorter one"):
        plots.singular_values(theory, trained[:, :1])
    with pytest.raises(ValueError, match="1 names but there are 2"):
        plots.singular_values(theory, trained, labels=["decoder"])


def test_loss_with_thresholds_of_theory() -> None:
    beta = torch.linspace(0.1, 5.0, 20)
    sweep = [linear_vae([2.0, 1.5, 0.1], 3, beta=b) for b in beta]
    ax = plots.loss_with_thresholds(beta, torch.tensor([s.loss for s in sweep]), sweep[0].critical_beta)
    curve, *ticks = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), [s.loss for s in sweep], rtol=1e-6)
    assert [t.get_xdata()[0] for t in ticks] == pytest.approx([4.0, 2.25]), "0.01 lies outside"
    two = np.zeros((2, 20))
    labelled = plots.loss_with_thresholds(beta, two, sweep[0].critical_beta, labels=["a", "b"], xlabel="noise")
    assert labelled.get_xlabel() == "noise" and len(labelled.get_legend().get_texts()) == 2
    with pytest.raises(ValueError, match="noise does not ascend"):
        plots.loss_with_thresholds(beta.flip(0), two, sweep[0].critical_beta, xlabel="noise")
    with pytest.raises(ValueError, match=r"wanted \(E,\)"):
        plots.loss_with_thresholds(beta, two[:, :5], sweep[0].critical_beta)
    with pytest.raises(ValueError, match="1 names but loss has 2"):
        plots.loss_with_thresholds(beta, two, sweep[0].critical_beta, labels=["a"])


def test_forecasts_of_several_models() -> None:
    forecast, trained = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([2.0, 0.5, 3.5])
    ax = plots.forecast_scatter(forecast, trained, names=["a", "b", "c"])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), np.stack([forecast, trained], 1))
    assert ax.get_title(loc="left") == "rank correlation 0.50 over 3 models"
    assert [t.get_text() for t in ax.texts] == ["a", "b", "c"]
    bars = plots.forecast_bars(forecast, trained, ["a", "b", "c"], xlabel="digit")
    assert [bar.get_height() for bar in bars.containers[0]] == pytest.approx([2.0, 0.5, 3.5])
    np.testing.assert_allclose(bars.lines[0].get_ydata(), forecast)
    assert bars.get_xlabel() == "digit" and bars.get_title(loc="left") == "rank correlation 0.50"
    assert plots.forecast_bars(forecast, trained, "abc", title="here", ax=bars) is bars
    alike = plots.forecast_scatter(torch.zeros(3), trained)
    assert alike.get_title(loc="left") == "too few different models for a rank correlation over 3 models"
    with pytest.raises(ValueError, match=r"wanted \(M,\), one finite number"):
        plots.forecast_scatter(forecast, trained[:2])
    with pytest.raises(ValueError, match="one finite number"):
        plots.forecast_bars(forecast, trained / 0, ["a", "b", "c"])
    with pytest.raises(ValueError, match="2 names but there are 3 models"):
        plots.forecast_bars(forecast, trained, ["a", "b"])
