"""Image completion: cutting and putting together."""

import pytest
import torch

from pyro_vaes.data import assemble, complete, load_data

PARTS = ["top_left", "top_right", "bottom_right", "bottom_left", "top", "bottom", "left", "right"]


@pytest.mark.parametrize("observed", PARTS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 6), (2, 2, 5)])
def test_assemble_is_the_inverse(observed, shape):
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    target, covariate = complete(images, observed)
    assert target.shape[-1] + covariate.shape[-1] == images[0].numel()
    assert torch.equal(assemble(target, covariate, shape, observed), images)
    flat = complete(images.flatten(1), observed, image_shape=shape)
    assert torch.equal(flat[0], target) and torch.equal(flat[1], covariate)
    assert torch.equal(assemble(*flat, shape, observed, flatten=True), images.flatten(1))


def test_order_of_the_quarters():
    quarter = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [3, 3, 2, 2], [3, 3, 2, 2]]).reshape(1, 1, 4, 4)
    for number, observed in enumerate(PARTS[:4]):
        target, covariate = complete(quarter, observed)
        assert covariate.unique().tolist() == [number]
        assert target.unique_consecutive().tolist() == [n for n in range(4) if n != number]


def test_several_completions_of_one_image():
    images = torch.rand(5, 1, 4, 4)
    target, covariate = complete(images)
    several = assemble(target.expand(7, 5, -1), covariate, (1, 4, 4))
    assert several.shape == (7, 5, 1, 4, 4) and torch.equal(several[3], images)


def test_view_of_a_data_set():
    data = load_data("digits")
    view = data.completion("top")
    target, covariate = view.train.batch(torch.tensor([4, 2]))
    images = assemble(target, covariate, data.image_shape, "top", flatten=True)
    assert torch.equal(images, data.train[[4, 2]])
    assert torch.equal(view.train.x, data.train.x)
    with pytest.raises(ValueError, match=r"assemble\(\)"):
        view.to_images(target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complete(torch.rand(2, 1, 4, 4), "middle"), "is a quarter"),
        (lambda: complete(torch.rand(2, 16)), "image_shape="),
        (lambda: complete(torch.rand(2, 15), image_shape=(1, 4, 4)), "15 pixels"),
        (lambda: complete(torch.rand(2, 1, 1, 16)), "no quarters"),
        (lambda: assemble(torch.rand(2, 11), torch.rand(2, 4), (1, 4, 4)), "12 and 4 are wanted"),
        (lambda: load_data("digits").completion("centre"), "is a quarter"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
