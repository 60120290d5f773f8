"""The histogram of divergences: shares of pairs in common bins, zeros kept, what cannot be a KL divergence refused."""

import numpy as np
import pytest
import torch

from pyro_vaes import plots


def test_shares_of_pairs_in_common_bins():
    found = {"near": torch.tensor([1.0, 1.0, 2.0, 0.0]), "far": torch.tensor([[100.0, 300.0], [100.0, 100.0]])}
    ax = plots.divergence_histogram(found, bins=10)
    assert ax.get_xscale() == "log" and ax.get_yscale() == "log"
    near, far = (patch.get_data() for patch in ax.patches)
    np.testing.assert_allclose([near.values.sum(), far.values.sum()], 1.0)
    np.testing.assert_array_equal(near.edges, far.edges)
    assert near.edges[0] < 1e-6 and near.edges[-1] > 300, "zeros have a place"
    np.testing.assert_allclose(np.diff(np.log(near.edges)), np.log(near.edges[-1] / near.edges[0]) / 10)
    assert far.values[-1] == 1.0 and near.values[0] == 0.25
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["near: median 1, max 2 times that", "far: median 100, max 3 times that"]


def test_bad_input():
    with pytest.raises(ValueError, match="'guide' run from -1 to 2; a KL divergence is not negative"):
        plots.divergence_histogram({"guide": np.array([-1.0, 2.0])})
    with pytest.raises(ValueError, match="empty: give at least one"):
        plots.divergence_histogram({})
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.divergence_histogram({"none": np.array([])})
