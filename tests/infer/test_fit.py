"""fit: the same numbers from the same seed, and nothing moves that should not."""

import functools
import random
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vaes.data import load_data
from pyro_vaes.guides import AmortizedNormal
from pyro_vaes.infer import (
    Callback,
    DReG_ELBO,
    EarlyStopping,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    KLWarmup,
    SoftFreeBits,
    evaluate,
    fit,
)
from pyro_vaes.infer.batches.batches import as_batches
from pyro_vaes.infer.checks.last_batch import keep_or_drop_last
from pyro_vaes.models import VAE, LadderVAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, LaplaceLikelihood, NormalHead, small_ladder
from pyro_vaes.programs.pair import Pair
from tests.infer.pairs import (
    D,
    binary,
    binary_vae,
    exact_linear,
    function_pair,
    linear_vae,
    losses,
    param_pair,
    same,
    weights,
)

quick = functools.partial(fit, epochs=2, batch_size=32, seed=5, progress=False)


def test_a_seed_reproduces_bit_for_bit_and_generators_outside_are_unchanged():
    ends = []
    for _ in range(2):
        vae = binary_vae(middle=nn.Dropout(0.3))
        torch.manual_seed(17)
        before = torch.get_rng_state(), pyro.util.get_rng_state()["numpy"][1].copy(), random.getstate()
        history = quick(vae.model, vae.guide, binary())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(pyro.util.get_rng_state()["numpy"][1], before[1]) and random.getstate() == before[2]
        ends.append((weights(vae), losses(history)))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    vae = binary_vae(middle=nn.Dropout(0.3))
    assert losses(quick(vae.model, vae.guide, binary(), seed=6)) != ends[0][1]


def test_without_a_seed_the_global_one_counts():
    ends = []
    for _ in range(2):
        vae = binary_vae()
        torch.manual_seed(4)
        fit(vae.model, vae.guide, binary(), epochs=1, progress=False)
        ends.append(weights(vae))
    assert same(*ends)


def test_two_models_trained_in_turn_by_fit_end_where_they_end_alone():
    x = binary()

    def alone(seed):
        vae = binary_vae(seed=seed)
        for round_ in range(3):
            quick(vae.model, vae.guide, x, epochs=1, seed=round_)
        return weights(vae)

    wanted = alone(1), alone(2)
    first, second = binary_vae(seed=1), binary_vae(seed=2)
    for round_ in range(3):
        quick(first.model, first.guide, x, epochs=1, seed=round_)
        quick(second.model, second.guide, x, epochs=1, seed=round_)
    assert same(weights(first), wanted[0]) and same(weights(second), wanted[1])


@pytest.mark.parametrize("in_turn", [False, True])
def test_two_models_trained_by_svi_end_where_they_end_alone(in_turn):
    x = binary()

    def start(seed):
        vae = binary_vae(seed=seed)
        return vae, SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())

    def steps(svi, seeds):
        for seed in seeds:
            pyro.set_rng_seed(seed)
            svi.step(x)

    wanted = []
    for seed in (1, 2):
        pyro.clear_param_store()
        vae, svi = start(seed)
        untrained = weights(vae)
        steps(svi, range(4))
        assert not same(weights(vae), untrained)
        wanted.append(weights(vae))
    pyro.clear_param_store()
    (first, svi), (second, other) = start(1), start(2)
    for seeds in ([0], [1], [2], [3]) if in_turn else ([0, 1, 2, 3],):
        steps(svi, seeds)
        steps(other, seeds)
    assert same(weights(first), wanted[0]) and same(weights(second), wanted[1])


def test_function_pairs_with_the_same_names_both_train():
    x = binary()
    _, _, alone = pair = function_pair(seed=2)
    quick(*pair[:2], x)
    pyro.clear_param_store()
    model, guide, first = function_pair(seed=1)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)  # leaves these names in the global store
    before, store = weights(first), dict(pyro.get_param_store().items())
    model, guide, second = function_pair(seed=2)
    untrained = weights(second)
    quick(model, guide, x)
    assert same(weights(second), weights(alone)) and not same(weights(second), untrained)
    assert same(weights(first), before)
    assert pyro.get_param_store().keys() == store.keys()
    assert all(pyro.param(n) is v for n, v in store.items())


def test_networks_of_one_name_in_one_pair_both_train():
    model, guide, networks = function_pair()

    def renamed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = pyro.module("encoder", decoder)(z)
            pyro.sample("x", pyro.distributions.Bernoulli(logits=logits).to_event(1), obs=x)

    quick(model, guide, binary())
    wanted = weights(networks)
    _, guide, other = function_pair()
    decoder = other[1]
    quick(renamed, guide, binary())
    assert same(weights(other), wanted)


def test_param_statements_live_in_the_store_afterwards():
    model, guide = param_pair()
    x = torch.randn(64, D)
    history = quick(model, guide, x, epochs=20, optim=functools.partial(torch.optim.Adam, lr=2e-2))
    assert history.train[-1] < history.train[0] - 0.3
    store = pyro.get_param_store()
    assert set(store.keys()) == {"weight", "scale", "back"}
    assert store["scale"].item() != 1.0 and store["scale"].item() > 0
    last = evaluate(model, guide, x)
    again = quick(model, guide, x, epochs=1)  # goes on from the store
    assert again.train[0] == pytest.approx(last, abs=1.0)


def test_frozen_layers_stay_frozen_without_a_warning():
    vae = binary_vae()
    for parameter in vae.decoder.parameters():
        parameter.requires_grad_(False)
    frozen, encoder = weights(vae.decoder), weights(vae.encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(vae.model, vae.guide, binary(), optim=functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5))
    assert same(weights(vae.decoder), frozen) and not same(weights(vae.encoder), encoder)
    assert not any(p.requires_grad for p in vae.decoder.parameters())


def test_nothing_to_train_is_refused():
    vae = binary_vae()
    vae.requires_grad_(False)
    with pytest.raises(ValueError, match=r"No parameter requires a gradient"):
        quick(vae.model, vae.guide, binary())


def test_only_reached_parameters_move():
    vae = binary_vae()
    guide = AmortizedNormal(vae.model, Chain(MLP(D, [8], 8), NormalHead(8, 2)))
    encoder, decoder = weights(vae.encoder), weights(vae.decoder)
    quick(vae.model, guide, binary(), optim=functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5))
    assert same(weights(vae.encoder), encoder) and not same(weights(vae.decoder), decoder)


class Labelled(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], row % 3


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


DATA = {
    "tensor": lambda x: x,
    "tuple with labels": lambda x: (x, torch.arange(len(x))),
    "float64 array": lambda x: x.double().numpy(),
    "dataset": lambda x: TensorDataset(x),
    "dataset with labels": Labelled,
    "stream": Stream,
    "loader": lambda x: DataLoader(Labelled(x), batch_size=32, shuffle=True),
    "list of batches": lambda x: list(x.split(32)),
    "list of one batch": lambda x: [x],
    "list of numbers with rows": lambda x: [(b, 1.0) for b in x.split(32)],
    "list of tuples": lambda x: [(b, torch.zeros(len(b))) for b in x.split(32)],
}


@pytest.mark.parametrize("kind", DATA)
def test_accepted_data(kind):
    x, vae = binary(70), binary_vae()  # 70 rows: a short last batch of 6
    history = quick(vae.model, vae.guide, DATA[kind](x), valid=DATA[kind](x))
    assert len(history) == 2 and history.valid[1] == pytest.approx(evaluate(vae.model, vae.guide, x), abs=0.5)
    assert history.train[0] < 12 and history.skipped == 0


def test_rows_of_every_kind_give_the_same_numbers():
    ends = []
    for kind in ("tensor", "float64 array", "dataset", "dataset with labels"):
        vae = binary_vae()
        quick(vae.model, vae.guide, DATA[kind](binary(70)))
        ends.append(weights(vae))
    assert all(same(ends[0], end) for end in ends[1:])


def test_image_data_and_split_and_labels():
    digits = load_data("digits").take(100, 50, 50)
    vae = VAE(NormalHead(64, 2), MLP(2, [], 64), GaussianLikelihood(), 2)
    whole = quick(vae.model, vae.guide, digits)
    assert len(whole.valid) == 2
    assert quick(vae.model, vae.guide, digits.train).valid == []
    assert len(quick(vae.model, vae.guide, digits.with_labels(), valid=digits.test).valid) == 2


class Rows(Callback):
    """The number of rows that the networks see at each step."""

    def __init__(self, vae):
        self.seen = []
        vae.encoder.register_forward_pre_hook(lambda _, args: self.seen.append(len(args[0])))

    def start(self, run):
        self.seen.clear()


def test_a_last_batch_of_one_row_is_left_out_where_the_batch_is_normalised():
    """The default ladder on 9 images, of which one would be alone: torch refuses that at the end of the epoch."""
    ladder = LadderVAE(
        *small_ladder((1, 8, 8), channels=(2, 3), width=8), LaplaceLikelihood(0.125, event_dim=3), [2, 2, 2]
    )
    x = load_data("digits", flatten=False).train[:9]
    before = weights(ladder)
    with pytest.raises(ValueError, match=r"last batch of the training data has a size of 1.*BatchNorm.*drop_last=True"):
        quick(ladder.model, ladder.guide, x, batch_size=8, drop_last=False)
    assert same(before, weights(ladder))
    for drop_last in (None, True):
        history = quick(ladder.model, ladder.guide, x, batch_size=8, drop_last=drop_last, valid=x[:1])
        assert np.isfinite([*history.train, *history.valid]).all() and len(history.valid) == 2
    for images, batch_size in ((x, 1), (x[:1], 8)):  # nothing is left without the batches of one row
        with pytest.raises(ValueError, match=r"training data has a size of 1.*BatchNorm.*another batch_size"):
            quick(ladder.model, ladder.guide, images, batch_size=batch_size)
    ladder.eval()  # without statistics of the batch a row can be alone
    quick(ladder.model, ladder.guide, x, batch_size=8, drop_last=False)


@pytest.mark.parametrize(
    ("middle", "rows", "kept"),
    [
        (nn.BatchNorm1d(8), 65, False),
        (nn.BatchNorm1d(8), 66, True),  # two rows have a spread
        (nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2), nn.Flatten()), 65, True),  # pixels have one too
        (nn.LayerNorm(8), 65, True),
        (nn.BatchNorm1d(8).eval(), 65, True),
    ],
    ids=["one row", "two rows", "pixels", "no batch norm", "evaluation mode"],
)
def test_only_what_torch_refuses_is_left_out(middle, rows, kept):
    vae = binary_vae(middle=middle)
    seen = Rows(vae)
    quick(vae.model, vae.guide, binary(rows), epochs=1, callbacks=[seen])
    assert seen.seen[-1] == (rows % 32 if kept else 32)


@pytest.mark.parametrize(("rows", "kept"), [(66, False), (67, True), (64, True)])
def test_a_row_may_be_alone_in_a_process(rows, kept):
    """Two processes with 16 rows each of a batch; of the last one each has half, filled up from the beginning."""
    vae = binary_vae(middle=nn.BatchNorm1d(8))
    pair, bound = Pair(vae.model, vae.guide), Trace_ELBO()
    batches = as_batches(binary(rows), 32, shuffle=True, world_size=2)
    assert keep_or_drop_last(pair, batches, None, bound, None).keeps_last == kept
    held_out = as_batches(binary(1), 32, shuffle=False, world_size=2)  # the second process has none
    keep_or_drop_last(pair, batches, held_out, bound, None)
    with pytest.raises(ValueError, match=r"training data has a size of 2.*one row of a process"):
        keep_or_drop_last(pair, as_batches(binary(8), 2, shuffle=True, world_size=2), None, bound, None)


def test_held_out_rows_may_be_alone_in_evaluation_mode():
    x, vae = binary(129), binary_vae(middle=nn.BatchNorm1d(8))
    history = quick(vae.model, vae.guide, x[:64], valid=x)  # 128 rows, and one
    assert history.valid[1] == pytest.approx(evaluate(vae.model, vae.guide, x), abs=0.5)
    assert len(quick(vae.model, vae.guide, x[:64], valid=DataLoader(TensorDataset(x[:3]))).valid) == 2
    bare = binary_vae(middle=nn.BatchNorm1d(8, track_running_stats=False))  # always takes those of the batch
    with pytest.raises(ValueError, match=r"last batch of the held-out data has a size of 1.*BatchNorm"):
        quick(bare.model, bare.guide, x[:64], valid=x)


def test_unusable_held_out_data_are_named():
    vae = binary_vae()
    with pytest.raises(ValueError, match=r"^In the held-out data, valid: .*list of numbers"):
        quick(vae.model, vae.guide, binary(8), valid=[0.0, 1.0])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: iter([binary()]), "one-shot iterator"),
        (lambda: (b for b in [binary()]), "one-shot iterator"),
        (lambda: torch.zeros(0, D), "empty"),
        (list, "empty"),
        (lambda: Labelled(torch.zeros(0, D)), "empty"),
        (lambda: "digits", "data is a str"),
        (lambda: {"x": binary()}, "data is a dict"),
        (lambda: None, "data is a NoneType"),
        (lambda: np.array([["a"]]), "ndarray of dtype <U1"),
        (lambda: torch.tensor(1.0), "with shape"),
        (lambda: (binary(10), binary(9)), "same number of rows"),
        (lambda: Labelled([object()] * 5), "transform that returns tensors"),
        (lambda: [[0.1] * D] * 10, r"data is a list of lists of numbers, .* read as batches: torch\.tensor\(rows\)\?"),
        (lambda: [0.1] * D, r"data is a list of numbers, .* read as batches: torch\.tensor\(rows\)\?"),
        (
            lambda: (binary(2), [0, 1]),
            r"data is a tuple .*, of which one is a list of numbers: torch\.tensor\(labels\)\?",
        ),
    ],
)
def test_data_that_cannot_be_used(data, said):
    vae = binary_vae()
    with pytest.raises(ValueError, match=said):
        quick(vae.model, vae.guide, data())


def test_subsampled_plate_reports_nats_per_datum():
    # the guide is exact, so each bound is log p(x) without noise: only rounding remains
    model, guide, evidence = exact_linear()
    x = evidence.sample((64,))
    exact = -evidence.log_prob(x).mean().item()
    assert evaluate(model, guide, x, batch_size=20) == pytest.approx(exact, abs=1e-9)
    sub_model, sub_guide, _ = exact_linear(full_size=1000)
    assert evaluate(sub_model, sub_guide, x, batch_size=20) == pytest.approx(exact, abs=1e-9)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    plain = fit(model, guide, x, epochs=1, batch_size=20, optim=still, progress=False, valid=x)
    scaled = fit(sub_model, sub_guide, x, epochs=1, batch_size=20, optim=still, progress=False, valid=x)
    for history in (plain, scaled):
        assert history.train[0] == pytest.approx(exact, abs=1e-9)
        assert history.valid[0] == pytest.approx(exact, abs=1e-9)


def test_a_plate_of_fixed_size_trains_on_the_full_batch():
    x = torch.randn(64, D)
    model, _ = param_pair()

    def fixed(x):
        loc = pyro.param("loc", torch.zeros(64, 2))
        with pyro.plate("data", 64):
            pyro.sample("z", pyro.distributions.Normal(loc, 1.0).to_event(1))

    assert len(fit(model, fixed, x, batch_size=64, epochs=1, progress=False).train) == 1


OPTIMISERS = {
    "default": lambda vae: None,
    "partial": lambda vae: functools.partial(torch.optim.SGD, lr=1e-2),
    "instance": lambda vae: torch.optim.Adam(vae.parameters(), lr=1e-2),
    "pyro clipped": lambda vae: pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 5.0}),
    "pyro": lambda vae: pyro.optim.Adam({"lr": 1e-2}),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_optimisers(kind):
    vae = binary_vae()
    before = weights(vae)
    history = quick(vae.model, vae.guide, binary(), optim=OPTIMISERS[kind](vae))
    assert not same(weights(vae), before)
    assert history.learning_rate[-1] == (1e-3 if kind == "default" else 1e-2)


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (lambda: torch.optim.Adam([nn.Parameter(torch.zeros(1))]), "lacks"),
        (lambda: "adam", "optim is a str"),
        (lambda: lambda parameters: None, "optim returned a NoneType"),
        (lambda: pyro.optim.Adam(lambda name: {"lr": 1e-3}), "per-parameter arguments are for SVI"),
    ],
)
def test_optimisers_that_cannot_be_used(optim, said):
    vae = binary_vae()
    with pytest.raises(ValueError, match=said):
        quick(vae.model, vae.guide, binary(), optim=optim())


def enumerated_pair():
    decoder = nn.Linear(3, D)
    classifier = nn.Linear(D, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", pyro.distributions.Categorical(logits=x.new_zeros(3)), infer={"enumerate": "parallel"})
            logits = decoder(nn.functional.one_hot(y, 3).float())
            pyro.sample("x", pyro.distributions.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        pyro.module("classifier", classifier)
        with pyro.plate("data", len(x)):
            pyro.sample("y", pyro.distributions.Categorical(logits=classifier(x)), infer={"enumerate": "parallel"})

    return model, guide, nn.ModuleList([decoder, classifier])


@pytest.mark.parametrize("guided", [True, False])
def test_enumerated_sites(guided):
    model, guide, networks = enumerated_pair()
    before = weights(networks)
    guide = guide if guided else (lambda x: None)
    history = quick(model, guide, binary(), loss=TraceEnum_ELBO(max_plate_nesting=1), valid=binary(), epochs=3)
    assert history.train[-1] < history.train[0]
    after = weights(networks)
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert guided != torch.equal(after["1.weight"], before["1.weight"])


LOSSES = {
    "trace": Trace_ELBO,
    "particles": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "mean field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "importance": lambda: ImportanceWeighted_ELBO(3),
    "free bits": lambda: FreeBits_ELBO(0.1),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(kind):
    # all of them have the same expectation up to a gap of at most the KL, so the losses per datum lie close together
    vae = binary_vae()
    before = weights(vae)
    history = quick(vae.model, vae.guide, binary(), loss=LOSSES[kind](), valid=binary())
    after = weights(vae)
    assert all(not torch.equal(after[n], before[n]) for n in before if n.endswith("weight"))
    assert history.train[0] == pytest.approx(9.5, abs=2.5) and history.valid[0] == pytest.approx(9.5, abs=2.5)


def test_without_a_differentiable_loss_the_same_parameters_train():
    """TraceGraph_ELBO's gradients for a reparameterised pair are those of Trace_ELBO: so is the path of training."""
    ends = []
    for loss in (Trace_ELBO(), TraceGraph_ELBO()):
        vae = linear_vae()
        x = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
        quick(vae.model, vae.guide, x, loss=loss, optim=functools.partial(torch.optim.SGD, lr=0.05))
        ends.append(weights(vae))
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-5) for n in ends[0])


@pytest.mark.parametrize("bound", [ImportanceWeighted_ELBO, DReG_ELBO])
@pytest.mark.parametrize("callback", [lambda: KLWarmup(10), lambda: SoftFreeBits(1.0, lambda: 1.0)])
def test_kl_weights_are_refused_where_they_do_nothing(callback, bound):
    vae = binary_vae()
    with pytest.raises(ValueError, match="would do nothing"):
        quick(vae.model, vae.guide, binary(), loss=bound(3), callbacks=[callback()])


def test_arguments_out_of_range():
    vae = binary_vae()
    for arguments, said in [
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, r"epochs is 1\.5; a whole number is wanted"),
        ({"epochs": "3"}, r"epochs is '3'; a whole number is wanted"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, r"batch_size is 1\.5; a whole number is wanted"),
        ({"device": "gpu"}, r"device='gpu' cannot be used here \(Expected one of .*: leave it out to train where the"),
        ({"device": 1.5}, r"device='1\.5' cannot be used here"),
        (
            {"callbacks": EarlyStopping(3)},
            r"callbacks is one EarlyStopping; a list is wanted: callbacks=\[EarlyStopping\(\.\.\.\)\]",
        ),
        ({"callbacks": KLWarmup(3)}, r"callbacks is one KLWarmup; a list is wanted: callbacks=\[KLWarmup\(\.\.\.\)\]"),
        ({"callbacks": [EarlyStopping]}, r"callbacks holds the class EarlyStopping; an instance is wanted"),
        ({"callbacks": [print]}, r"callbacks holds a builtin_function_or_method; .* subclass of Callback"),
        ({"resume": True}, "needs the directory"),
        ({"on_nan": "ignore"}, "on_nan"),
    ]:
        with pytest.raises(ValueError, match=said):
            quick(vae.model, vae.guide, binary(), **arguments)
    with pytest.raises(ValueError, match="has no forward"):
        quick(vae, vae, binary())
    with pytest.raises(ValueError, match="must be a Pyro program"):
        quick(None, vae.guide, binary())
    assert quick(vae.model, vae.guide, binary(), epochs=0).train == []
    assert len(quick(vae.model, vae.guide, binary(), epochs=np.int64(1))) == 1


def test_bad_data_leave_the_networks_where_they_are():
    vae = binary_vae()
    with pytest.raises(ValueError, match="data is a str"):
        quick(vae.model, vae.guide, "digits", device="meta")
    assert {p.device.type for p in vae.parameters()} == {"cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here():
    vae = binary_vae()
    with pytest.raises(ValueError, match=r"device='cuda' cannot be used here \(.*\): leave it out to train where the"):
        quick(vae.model, vae.guide, binary(), device="cuda")


def test_settings_come_back_also_after_an_exception():
    from pyro.infer import trace_elbo

    module, item = pyro.module, trace_elbo.torch_item
    vae = binary_vae()

    def failing(x):
        if not pyro.infer.util.is_validation_enabled():
            raise KeyError("in the middle of training")
        return vae.model(x)

    for enabled in (True, False):
        with pyro.validation_enabled(enabled):
            quick(vae.model, vae.guide, binary())
            for program in (failing, vae.model):
                with pytest.raises((KeyError, ValueError)):
                    quick(program, vae.guide, binary(), optim="adam" if program is not failing else None)
            assert pyro.infer.util.is_validation_enabled() == enabled
            assert torch.distributions.Distribution._validate_args == enabled
    assert pyro.module is module and trace_elbo.torch_item is item


def test_progress_bar(capsys):
    vae = binary_vae()
    fit(vae.model, vae.guide, binary(), epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(vae.model, vae.guide, binary(), valid=binary(), epochs=2)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "train=" in shown and "valid=" in shown and "nats/datum" in shown


def test_history_plots_and_prints_itself():
    vae = binary_vae()
    history = quick(vae.model, vae.guide, binary(), valid=binary())
    axes = history.plot()
    assert [line.get_label() for line in axes.lines] == ["training", "held out"]
    assert list(axes.lines[1].get_ydata()) == history.valid
    assert "nats per datum" in axes.get_ylabel()
    assert "2 epochs" in repr(history) and "no epoch yet" in repr(type(history)())
    history.best_epoch = 1
    assert len(history.plot(axes).lines) == 5
