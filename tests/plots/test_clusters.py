"""Cards of clusters: the right pictures in the right rows."""

import numpy as np
import pytest
import torch

from pyro_vaes import plots


def test_a_row_shows_the_members_of_its_cluster() -> None:
    clusters = torch.tensor([3, 0, 3, 1, 3, 0])
    images = torch.arange(6).float().div(10)[:, None, None].expand(6, 2, 2)
    ax = plots.cluster_cards(images, clusters, columns=2, value_range=(0.0, 1.0))
    picture = np.asarray(ax.images[0].get_array())
    shown = picture[[0, 0, 3, 3, 6, 6], [0, 3, 0, 3, 0, 3]]  # tiles of 2 x 2 with one white pixel between them
    np.testing.assert_allclose(shown, [0.0, 0.2, 0.1, 0.5, 0.3, 1.0], atol=1e-6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["3 (50%)", "0 (33%)", "1 (17%)"]
    assert len(plots.cluster_cards(images, clusters, largest=1).get_yticks()) == 1


@pytest.mark.parametrize("kind", [np.array, lambda k: np.asarray(k).astype(np.int32), torch.tensor])
def test_numbers_of_any_kind(kind) -> None:
    images = np.random.default_rng(0).random((6, 2, 2)).astype(np.float32)
    ax = plots.cluster_cards(images, kind([3, 0, 3, 1, 3, 0]))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["3 (50%)", "0 (33%)", "1 (17%)"]


@pytest.mark.parametrize(
    ("clusters", "options", "message"),
    [
        (torch.zeros(5).long(), {}, r"6 images, but clusters has int64 and shape \(5,\)"),
        (torch.zeros(6), {}, "wanted a whole number for each"),
        (np.zeros(6), {}, "wanted a whole number for each"),
        (torch.zeros(6).long(), {"columns": 0}, "at least 1, but got 0"),
    ],
)
def test_refusals(clusters, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        plots.cluster_cards(torch.rand(6, 4), clusters, **options)
