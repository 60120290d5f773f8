"""Per datum means per unit: exact values for globals, crossed plates, loops and rows that the guide draws."""

import functools
import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vaes.infer import check, derived_seed, evaluate, fit
from pyro_vaes.programs import UnitCounter

N, S, T = 30, 0.7, 0.5
NOISE = S**2 + T**2
X = torch.randn(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.8
EVIDENCE = dist.MultivariateNormal(torch.zeros_like(X), torch.ones(N, N) + NOISE * torch.eye(N).double()).log_prob(X)

quick = functools.partial(fit, epochs=1, progress=False, seed=0)


def rows(x):
    return pyro.plate("data", N, subsample_size=len(x))


def global_and_local(x):
    """w ~ N(0, 1), z_n ~ N(w, S²), x_n ~ N(z_n, T²)."""
    w = pyro.sample("w", dist.Normal(X.new_zeros(()), 1.0))
    with rows(x):
        z = pyro.sample("z", dist.Normal(w, S))
        pyro.sample("x", dist.Normal(z, T), obs=x)


def exact(x, spare=None):
    """q(w) of all the data, and q(z_n | x_n, w)."""
    precision = 1 + N / NOISE
    w = pyro.sample("w", dist.Normal(X.sum() / NOISE / precision, precision**-0.5))
    local = S**-2 + T**-2
    with rows(x):
        pyro.sample("z", dist.Normal((w / S**2 + x / T**2) / local, local**-0.5))


class ExactGuide(nn.Module):
    """The same with a parameter without effect, so that there is something to train."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(X.new_zeros(()))

    def forward(self, x):
        pyro.module("exact", self)
        exact(x + 0 * self.spare)


@pytest.mark.parametrize("batch_size", [1, 7, 16, N])
@pytest.mark.parametrize("order", [torch.arange(N), torch.arange(N).flip(0)])
def test_p4_the_bound_of_all_data_is_their_evidence(batch_size, order):
    """One draw of the global serves the whole pass, and its KL counts once."""
    loss = evaluate(global_and_local, exact, X[order], batch_size=batch_size)
    assert loss * N == pytest.approx(-EVIDENCE.item(), abs=1e-9)


def test_p4_fit_reports_it_too():
    history = quick(global_and_local, ExactGuide(), X, batch_size=N, valid=X)
    assert history.train[0] * N == pytest.approx(-EVIDENCE.item(), abs=1e-9)
    for batch_size in (2, 5):  # held-out batches have four times as many rows
        history = quick(global_and_local, ExactGuide(), X, batch_size=batch_size, valid=X)
        assert history.valid[0] * N == pytest.approx(-EVIDENCE.item(), abs=1e-9)


def test_p4_several_particles_keep_their_own_globals():
    for vectorize in (False, True):
        bound = Trace_ELBO(num_particles=3, vectorize_particles=vectorize)
        loss = evaluate(global_and_local, exact, X, batch_size=7, loss=bound)
        assert loss * N == pytest.approx(-EVIDENCE.item(), abs=1e-9)


# plates without a size, loops, rows that the guide draws


def unsized(x):
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def spare():
    """A parameter without effect, so that there is something to train."""
    return 0 * pyro.param("spare", X.new_zeros(()))


def unsized_guide(x):
    with pyro.plate("data"):
        pyro.sample("z", dist.Normal(x / 2 + spare(), 0.5**0.5))


def looped(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def looped_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(x[i] / 2 + spare(), 0.5**0.5))


def by_column(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.expand(len(x), 1), 1.0), obs=x.unsqueeze(-1))


def by_column_guide(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1) / 2 + spare(), 0.5**0.5))


PAIRS = {
    "plate without a size": (unsized, unsized_guide),
    "for i in pyro.plate": (looped, looped_guide),
    "plate at dim -2": (by_column, by_column_guide),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_plates_of_every_kind_are_per_row(kind):
    """x_n ~ N(0, 2) with the exact posterior: every draw gives the evidence."""
    model, guide = PAIRS[kind]
    wanted = -dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X).mean().item()
    assert check(model, guide, X).ok
    assert evaluate(model, guide, X, batch_size=7) == pytest.approx(wanted, abs=1e-9)
    assert UnitCounter(model, guide).of((X,)).num_data == N


def test_the_guide_draws_the_rows_and_the_model_follows():
    """As in AIR: only the guide's plate subsamples, and the loss stands for all N."""

    def model(data):
        with pyro.plate("data", len(data)) as index:
            z = pyro.sample("z", dist.Normal(data.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(data):
        with pyro.plate("data", len(data), subsample_size=4) as index:
            pyro.sample("z", dist.Normal(data[index] / 2 + spare(), 0.5**0.5))

    units = UnitCounter(model, guide).of((X[:16],))
    assert (units.size, units.num_data) == (4, 16)
    assert check(model, guide, X[:16]).ok

    same = X.new_full((16,), 0.3)  # any four rows give one number
    wanted = -dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(same[0]).item()
    assert evaluate(model, guide, same) == pytest.approx(wanted, abs=1e-9)


def test_words_by_documents():
    """Documents lie along the last dimension, words along the one before."""

    def model(words):
        with pyro.plate("documents", words.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(words.new_zeros(()), 1.0))
            with pyro.plate("words", words.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=words)

    def guide(words):
        precision = 1 + len(words)
        with pyro.plate("documents", words.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(words.sum(0) / precision, precision**-0.5))

    words = X.reshape(10, 3)
    covariance = torch.ones(10, 10).double() + torch.eye(10)
    evidence = dist.MultivariateNormal(torch.zeros(10).double(), covariance).log_prob(words.T)
    assert evaluate(model, guide, words, batch_size=10) == pytest.approx(-evidence.mean().item(), abs=1e-9)
    assert evaluate(model, guide, words, unit="words") == pytest.approx(-evidence.sum().item() / 30, abs=1e-9)


# crossed plates


U, V = 6, 5
R = X.reshape(U, V)


def crossed(r):
    users, items = pyro.plate("users", U, dim=-2), pyro.plate("items", V, dim=-1)
    with users:
        u = pyro.sample("u", dist.Normal(r.new_zeros(()), 1.0))
    with items:
        v = pyro.sample("v", dist.Normal(r.new_zeros(()), 1.0))
    with users, items:
        pyro.sample("r", dist.Normal(u + v, 0.5), obs=r)


def design():
    """The matrix A with r = A (u, v) + noise."""
    of_user = torch.eye(U).double().repeat_interleave(V, 0)
    of_item = torch.eye(V).double().repeat(U, 1)
    return torch.cat([of_user, of_item], 1)


def crossed_exact(r):
    a = design()
    precision = torch.eye(U + V).double() + a.T @ a / 0.25
    loc = torch.linalg.solve(precision, a.T @ r.flatten() / 0.25)
    both = dist.MultivariateNormal(loc, precision_matrix=precision)
    joint = pyro.sample("both", both, infer={"is_auxiliary": True})

    with pyro.plate("users", U, dim=-2):
        pyro.sample("u", dist.Delta(joint[:U].unsqueeze(-1)))
    with pyro.plate("items", V, dim=-1):
        pyro.sample("v", dist.Delta(joint[U:]))


def crossed_evidence():
    a = design()
    covariance = a @ a.T + 0.25 * torch.eye(U * V).double()
    return dist.MultivariateNormal(torch.zeros(U * V).double(), covariance).log_prob(R.flatten()).item()


def test_p6_users_by_items_need_a_unit(caplog):
    with caplog.at_level(logging.WARNING):
        whole = evaluate(crossed, crossed_exact, R)
    assert whole == pytest.approx(-crossed_evidence(), abs=1e-9)
    assert caplog.text.count("none of them inside another") == 1 and "unit='users'" in caplog.text

    for unit, size in (("users", U), ("items", V)):
        loss = evaluate(crossed, crossed_exact, R, unit=unit)
        assert loss == pytest.approx(-crossed_evidence() / size, abs=1e-9)
    with pytest.raises(ValueError, match=r"unit='patients' is no plate that holds all observed.*\['users', 'items'\]"):
        evaluate(crossed, crossed_exact, R, unit="patients")


class MeanField(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.zeros(U, 1).double()), nn.Parameter(torch.zeros(V).double())

    def forward(self, r):
        pyro.module("mean_field", self)
        with pyro.plate("users", U, dim=-2):
            pyro.sample("u", dist.Normal(self.u, 0.3))
        with pyro.plate("items", V, dim=-1):
            pyro.sample("v", dist.Normal(self.v, 0.3))


def test_p6_users_by_items_train_alike_under_svi_and_fit():
    trained, stepped = MeanField(), MeanField()
    sgd = functools.partial(torch.optim.SGD, lr=0.05 * U)  # fit divides the loss by the users
    history = quick(crossed, trained, [R], optim=sgd, unit="users", seed=3)

    pyro.clear_param_store()
    svi = SVI(crossed, stepped, pyro.optim.SGD({"lr": 0.05}), Trace_ELBO())
    pyro.set_rng_seed(derived_seed(3, 0, 0))
    assert svi.step(R) / U == pytest.approx(history.train[0], abs=1e-12)
    torch.testing.assert_close(trained.u, stepped.u, rtol=0, atol=1e-12)
    torch.testing.assert_close(trained.v, stepped.v, rtol=0, atol=1e-12)


# structures that change between batches


def sequence(x, y=None):
    """Steps along dimension 1, as many as the batch has; a label that some batches lack."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("y", dist.Normal(x.new_zeros(()), 1.0), obs=y)
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Normal(z, S))
            pyro.sample(f"x_{t}", dist.Normal(z, T), obs=x[:, t])


def joint(steps, given):
    """The linear map of the standard normals behind y, z and x of one sequence, for the covariance of all sites."""
    size = 1 + 2 * steps
    rows = torch.zeros(size, size, dtype=torch.float64)
    rows[0, 0] = 1
    for t in range(steps):
        rows[1 + 2 * t] = rows[max(0, 2 * t - 1)]
        rows[1 + 2 * t, 1 + 2 * t] = S
        rows[2 + 2 * t] = rows[1 + 2 * t]
        rows[2 + 2 * t, 2 + 2 * t] = T
    return rows @ rows.T, [2 + 2 * t for t in range(steps)] + ([0] if given else [])


def smoother(x, y=None):
    """The exact posterior of y and all z given x (and y), as one joint draw."""
    covariance, seen = joint(x.shape[1], y is not None)
    hidden = [i for i in range(len(covariance)) if i not in seen]
    names = ["y" if i == 0 else f"z_{(i - 1) // 2}" for i in hidden]
    data = x if y is None else torch.cat([x, y.unsqueeze(-1)], 1)

    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, hidden]).T
    left = covariance[hidden][:, hidden] - gain @ covariance[seen][:, hidden]
    posterior = dist.MultivariateNormal(data @ gain.T + spare(), left)

    with pyro.plate("data", len(x)):
        draw = pyro.sample("all", posterior, infer={"is_auxiliary": True})
        for name, value in zip(names, draw.unbind(-1), strict=True):
            pyro.sample(name, dist.Delta(value))


def evidence_of(x, y=None):
    covariance, seen = joint(x.shape[1], y is not None)
    data = x if y is None else torch.cat([x, y.unsqueeze(-1)], 1)
    fn = dist.MultivariateNormal(torch.zeros(len(seen)).double(), covariance[seen][:, seen])
    return fn.log_prob(data)


def test_p8_each_structure_is_a_program_of_its_own():
    """T = 4, then 6, with equal rows; y is latent in every second batch."""
    short, long = X[:20].reshape(5, 4), X.reshape(5, 6)
    batches = [(short, None), (long, None), (short, X[:5]), (long, X[:5]), (short, None)]
    wanted = torch.cat([evidence_of(*batch) for batch in batches]).mean()

    got = evaluate(sequence, smoother, batches)
    assert got == pytest.approx(-wanted.item(), abs=1e-9)
    history = quick(sequence, smoother, batches, optim=functools.partial(torch.optim.SGD, lr=0.0))
    assert history.train[0] == pytest.approx(-wanted.item(), abs=1e-9)
