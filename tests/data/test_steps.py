"""Preprocessing steps: values, log-determinants against autograd, inverses, refusals."""

import math

import pytest
import torch

from pyro_vaes.data import (
    Binarize,
    Dequantize,
    Grey,
    HorizontalFlip,
    Logit,
    MeanCentre,
    Resize,
    Threshold,
    ToSigned,
    ToUnit,
    from_tensors,
    load_data,
)

SHAPE = (2, 2, 5)  # C, H, W


def images(high: int = 255, n: int = 20, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(high + 1, (n, channels, *SHAPE[1:]), generator=generator)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0, high
    return x


def unit(n: int = 5) -> torch.Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


INVERTIBLE = [
    ToUnit(0.0, 16.0),
    ToUnit(-2.0, 3.0),
    ToSigned(0.0, 16.0),
    ToSigned(-2.0, 3.0),
    HorizontalFlip(),
    MeanCentre(torch.linspace(0, 1, 20, dtype=torch.float64).reshape(SHAPE)),
    Dequantize(256),
    Dequantize(17),
    Logit(0.05),
    Logit(1e-6),
]


@pytest.mark.parametrize("step", INVERTIBLE, ids=repr)
def test_log_det_agrees_with_autograd(step):
    x = unit()
    y = step(x)
    for row in range(len(x)):

        def of_one(pixels, row=row):
            # the row number fixes the noise, so that the map is a function
            return step(pixels.reshape(1, *SHAPE), None, torch.tensor([row])).flatten()

        jacobian = torch.autograd.functional.jacobian(of_one, x[row].flatten())
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(step.log_abs_det_jacobian(x, y)[row], expected)


@pytest.mark.parametrize("step", [s for s in INVERTIBLE if not s.random], ids=repr)
def test_inverse_undoes_the_step(step):
    x = unit()
    torch.testing.assert_close(step.inverse(step(x)), x)


def test_dequantize_fills_the_bins_and_its_inverse_gives_the_levels_back():
    levels = torch.arange(17.0).reshape(1, 1, 1, 17).expand(500, 1, 1, 17)
    y = Dequantize(17)(levels / 16)
    assert ((y * 17).floor() == levels).all()
    torch.testing.assert_close(Dequantize(17).inverse(y), levels / 16)
    # n = 8500 uniform offsets with the standard deviation 0.289: standard error 3.1e-3, five of them
    assert abs((y * 17 - levels).mean() - 0.5) < 0.016


def test_logit_log_det_is_finite_where_logits_are_large():
    x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    step = Logit(1e-6)
    assert torch.isfinite(step.log_abs_det_jacobian(x, step(x))).all()


def test_nats_in_pixel_space_integrate_to_one():
    # the density of y = f(x + u) for a uniform model on [0, 1): probability 1/L of each level, log L nats
    x = images(high=16)
    data = from_tensors(
        x.to(torch.uint8),
        value_range=(0, 16),
        image_shape=SHAPE,
        preprocess=[ToUnit(), Dequantize()],
        split=(0, 0),
    )
    pixel = data.nats_in_pixel_space(torch.zeros(20), data.train[:])
    torch.testing.assert_close(pixel, torch.full((20,), -20 * math.log(17)))


def test_nats_in_pixel_space_through_a_whole_pipeline():
    x = images()
    steps = [ToUnit(), Dequantize(), Logit(), MeanCentre()]
    data = from_tensors(x, image_shape=SHAPE, preprocess=steps, split=(0, 0))
    y = data.train[:]
    # a model whose dequantised pixels are uniform on [0, 1) gives each of 256 levels one probability
    logits = y.unflatten(1, SHAPE) + data.steps[3].mean
    log_p = -Logit().log_abs_det_jacobian(logits, logits)
    got = data.nats_in_pixel_space(torch.stack([log_p, log_p + 1]), y)
    # float32 sums of 20 terms of size 5: an error of about 1e-5
    torch.testing.assert_close(got[0], torch.full((20,), -20 * math.log(256)), atol=1e-3, rtol=0)
    torch.testing.assert_close(got[1] - got[0], torch.ones(20))
    torch.testing.assert_close(data.to_images(y), x / 255)


@pytest.mark.parametrize("step", [Binarize(), Threshold(), Resize(4), Grey()], ids=repr)
def test_steps_that_lose_information_have_no_log_det(step):
    with pytest.raises(ValueError, match="no bijection"):
        step.log_abs_det_jacobian(unit(), unit())


def test_signed_pixels_reach_from_minus_one_to_one():
    data = from_tensors(images().to(torch.uint8), image_shape=SHAPE, preprocess=ToSigned(), split=(0, 0))
    assert (data.info.low, data.info.high, data.info.levels) == (-1, 1, 256)
    torch.testing.assert_close(data.train.x, images().flatten(1) / 127.5 - 1)
    torch.testing.assert_close(data.to_images(data.train.x), images() / 255)
    assert "scaled to [-1, 1]" in data.space


def test_flip_mirrors_half_of_the_images_in_training_and_none_in_evaluation():
    x = images(n=2000).double()
    assert torch.equal(HorizontalFlip()(x), x)
    y = HorizontalFlip()(x, torch.Generator().manual_seed(0))
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) | mirrored).all()
    assert abs(mirrored.sum() - 1000) < 90  # n = 2000: four standard errors


def test_binarize_has_the_grey_values_as_means():
    p = torch.linspace(0, 1, 11).reshape(1, 1, 1, 11).expand(4000, 1, 1, 11)
    for generator in (None, torch.Generator().manual_seed(0)):
        bits = Binarize()(p, generator)
        assert set(bits.unique().tolist()) == {0.0, 1.0}
        # n = 4000: a standard error of at most 7.9e-3, five of them
        torch.testing.assert_close(bits.mean(0), p[0], atol=0.04, rtol=0)
        assert bits[..., 0].sum() == 0 and (bits[..., -1] == 1).all()


def test_threshold_cuts():
    data = from_tensors(images(high=16), value_range=(0, 16), image_shape=SHAPE, preprocess=[ToUnit(), Threshold(0.4)])
    assert torch.equal(data.train.x, (data.train.images.flatten(1) > 6).float())


def test_mean_centre_uses_the_training_part_only():
    x = images().float()
    shapes = {"flatten": False, "image_shape": SHAPE}
    data = from_tensors(x[:15], test=x[15:], split=(0, 0), preprocess=MeanCentre(), **shapes)
    torch.testing.assert_close(data.train[:], x[:15] - x[:15].mean(0))
    torch.testing.assert_close(data.test[:], x[15:] - x[:15].mean(0))
    low, high = data.value_range
    assert low <= data.train.x.min() and data.train.x.max() <= high


def test_resize_and_grey_keep_integers():
    x = images(channels=3).to(torch.uint8)
    data = from_tensors(x, preprocess=[Resize((4, 6)), Grey(), ToUnit(), Dequantize()])
    assert data.image_shape == (1, 4, 6)
    assert Grey()(x).dtype == torch.uint8 and Resize(3)(x).dtype == torch.uint8
    expected = (0.299 * x[:, 0].float() + 0.587 * x[:, 1].float() + 0.114 * x[:, 2].float()).round()
    torch.testing.assert_close(Grey()(x)[:, 0].float(), expected)
    constant = torch.full((1, 1, 9, 7), 200, dtype=torch.uint8)
    assert (Resize(4)(constant) == 200).all()


def test_ranges_after_each_step():
    x = images(high=16).to(torch.uint8)
    for steps, expected in [
        ((), (0, 16)),
        ((ToUnit(),), (0, 1)),
        ((ToUnit(), Binarize()), (0, 1)),
        ((ToUnit(), Threshold(0.4)), (0, 1)),
        ((ToUnit(), Dequantize(), Logit(0.05)), (math.log(0.05 / 0.95), math.log(0.95 / 0.05))),
    ]:
        data = from_tensors(x, value_range=(0, 16), preprocess=steps, image_shape=SHAPE)
        assert data.value_range == pytest.approx(expected)
        assert data.train.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Binarize()], r"put ToUnit\(\) before"),
        ([Threshold()], r"put ToUnit\(\) before"),
        ([Logit()], r"put ToUnit\(\) before"),
        ([Dequantize()], r"put ToUnit\(\) before"),
        ([ToUnit(), Dequantize(), Dequantize()], "continuous pixels"),
        ([ToUnit(7, 7)], "range is empty"),
        ([Grey()], "2 channels"),
    ],
)
def test_steps_refuse_pixels_they_cannot_work_on(steps, message):
    with pytest.raises(ValueError, match=message):
        from_tensors(images(), preprocess=steps, image_shape=SHAPE)


def test_constructors_refuse():
    with pytest.raises(ValueError, match="margin"):
        Logit(0.5)
    with pytest.raises(ValueError, match="threshold"):
        Threshold(127)
    with pytest.raises(ValueError, match="at least one pixel"):
        Resize(0)
    with pytest.raises(ValueError, match="no mean yet"):
        MeanCentre()(unit())
    assert "no mean" not in MeanCentre().space


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("binarize", r"preprocess is a str; steps are wanted, such as \[ToUnit\(\), Binarize\(\)\]\."),
        (["binarize"], r"preprocess holds a str; steps are wanted"),
        ([ToUnit(), Binarize], r"preprocess holds the class Binarize; an instance is wanted: Binarize\(\.\.\.\)\."),
        (Binarize, r"preprocess is the class Binarize; an instance is wanted: Binarize\(\.\.\.\)\."),
        (torch.round, r"preprocess is a builtin_function_or_method; steps are wanted"),
    ],
)
def test_what_is_no_step(steps, said):
    for make in (
        lambda: load_data("digits", preprocess=steps),
        lambda: from_tensors(torch.rand(9, 4), preprocess=steps),
    ):
        with pytest.raises(ValueError, match=said):
            make()


def test_a_view_takes_steps_one_by_one():
    digits = load_data("digits")
    for given, said in [
        (("binarize",), r"preprocess holds a str; steps are wanted, such as preprocess\(ToUnit\(\), Binarize\(\)\)\."),
        (([ToUnit(), Binarize()],), r"preprocess holds a list; steps are wanted, such as preprocess\(ToUnit\(\), "),
    ]:
        with pytest.raises(ValueError, match=said):
            digits.preprocess(*given)
