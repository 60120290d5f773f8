"""Sources of batches: what `fit` relies on."""

import pytest
import torch
from torch.utils.data import DataLoader

from pyro_vaes.data import Binarize, Dequantize, MeanCentre, Split, ToUnit, from_tensors, load_data


@pytest.fixture(scope="module")
def bits():
    return load_data("digits", preprocess=[ToUnit(), Binarize()])


def test_fresh_noise_in_training_fixed_noise_in_evaluation(bits):
    index = torch.arange(100)
    generator = torch.Generator().manual_seed(0)
    (first,), (second,) = bits.train.batch(index, generator), bits.train.batch(index, generator)
    assert not torch.equal(first, second)
    assert torch.equal(bits.train.batch(index, torch.Generator().manual_seed(0))[0], first)
    assert torch.equal(bits.train.batch(index)[0], bits.train.batch(index)[0])


@pytest.mark.parametrize("step", [Binarize(), Dequantize()], ids=repr)
def test_a_row_has_the_same_noise_however_it_is_batched(step):
    split = load_data("digits", preprocess=[ToUnit(), step]).valid
    whole = split.x
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat([split.batch(rows)[0] for rows in order.split(7)]), whole[order])
    assert torch.equal(torch.cat([split.batch(slice(i, i + 33))[0] for i in range(0, len(split), 33)]), whole)
    assert torch.equal(split[-1], whole[-1]) and torch.equal(split[[5, -2]], whole[[5, -2]])
    assert torch.equal(split.batch(slice(20, 100, 3))[0], whole[20:100:3])
    assert torch.equal(split.take(9).x, whole[:9])


@pytest.mark.parametrize("step", [Binarize(), Dequantize()], ids=repr)
def test_rows_taken_at_random_are_rows_of_the_part(step):
    split = load_data("digits", preprocess=[ToUnit(), step], labels=True).test
    state = torch.get_rng_state()
    some = split.take(50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(some) == len(some.rows.unique()) == 50 and not torch.equal(some.rows, some.rows.sort().values)
    assert torch.equal(some.images, split.images[some.rows]) and torch.equal(some.labels, split.labels[some.rows])
    assert torch.equal(some.x, split.x[some.rows])  # with the noise that they have there
    index = torch.tensor([7, 2])
    assert torch.equal(some.batch(index)[0], split.x[some.rows[index]])
    assert torch.equal(some.to("cpu").x, some.x)
    assert torch.equal(split.take(50, seed=3).rows, some.rows) and not torch.equal(
        split.take(50, seed=4).rows, some.rows
    )
    assert torch.equal(split.take(20, seed=3).rows, some.rows[:20])  # subsets of one seed are nested
    for less in (some.take(9), some.take(9, seed=1)):
        assert torch.equal(less.x, split.x[less.rows])
    assert torch.equal(some.take(9).rows, some.rows[:9])
    assert split.take(1000, seed=3).rows is None and torch.equal(split.take(1000, seed=3).x, split.x)


def test_parts_do_not_share_noise():
    grey = torch.full((200, 1, 8, 8), 128, dtype=torch.uint8)
    data = from_tensors(grey, preprocess=[ToUnit(), Binarize()], split=(100, 50))
    assert len(torch.unique(torch.cat([data.train.x, data.valid.x, data.test.x]), dim=0)) == 200


def test_no_global_generator_is_touched(bits):
    state = torch.get_rng_state()
    bits.train.batch(slice(0, 10), torch.Generator().manual_seed(3))
    bits.train.batch(slice(0, 10))
    load_data("digits")
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_with_labels_and_shapes():
    data = load_data("digits", split=(0, 0))
    (x,) = data.train.batch(torch.tensor([3, 1]))
    assert x.shape == (2, 64) and x.dtype == torch.float32
    torch.testing.assert_close(x, data.train.images[[3, 1]].flatten(1) / 16)
    x, y = data.with_labels().train.batch(torch.tensor([3, 1]))
    assert torch.equal(y, data.train.labels[[3, 1]])
    (x,) = load_data("digits", flatten=False).train.batch(slice(0, 5))
    assert x.shape == (5, 1, 8, 8)


def test_items():
    split = load_data("digits", split=(0, 0), labels=True).train
    x, y = split[5]
    assert x.shape == (64,) and y.shape == ()
    assert torch.equal(split[torch.tensor([5])][0][0], x) and torch.equal(split[[5]][0][0], x)
    mask = torch.zeros(len(split), dtype=torch.bool)
    mask[[5, 9]] = True
    assert torch.equal(split[mask][1], split.labels[[5, 9]])
    assert len(list(split.take(12))) == 12
    for bad in (len(split), -len(split) - 1):
        with pytest.raises(IndexError):
            split[bad]
        with pytest.raises(IndexError):
            split[[bad]]


def test_a_torch_data_loader_reads_a_split():
    x, y = next(iter(DataLoader(load_data("digits", labels=True).train, batch_size=16)))
    assert x.shape == (16, 64) and y.shape == (16,)


def test_to_keeps_everything(bits):
    moved = bits.preprocess(ToUnit(), MeanCentre()).to("cpu")
    assert torch.equal(moved.train.x, bits.preprocess(ToUnit(), MeanCentre()).train.x)
    assert isinstance(moved.train, Split) and moved.train.device == torch.device("cpu")
    assert "1437 images" in repr(moved.train)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_without_synchronisation(bits):
    data = bits.preprocess(ToUnit(), MeanCentre()).to("cuda")
    assert torch.allclose(data.valid.x.cpu(), bits.preprocess(ToUnit(), MeanCentre()).valid.x)
    gpu = bits.to("cuda")
    assert torch.equal(gpu.valid.x.cpu(), bits.valid.x)
    index = torch.arange(64, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu.train.batch(index, generator)
        gpu.train.batch(index)
        data.with_labels().train.batch(index)
        data.completion().train.batch(slice(0, 64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
