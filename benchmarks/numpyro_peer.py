"""The VAEs of peers.py in NumPyro; runs a round for each line that it reads.

Started by peers.py in an environment of its own that has numpyro and jax:

    python numpyro_peer.py JOB STEPS

It prints "ready", and for each line on its input the milliseconds per step of the jitted
step and of a scan over the epoch.
"""

import itertools
import os
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO

# features, widths, latent dimension, levels, batch
JOBS = {
    "tiny": (64, [32], 4, 1, 64),
    "hier5": (64, [32], 4, 5, 64),
    "mid": (784, [400], 20, 1, 256),
    "big": (784, [500, 500], 50, 1, 128),
}


def network(name, widths, x):
    for number, (wide, narrow) in enumerate(itertools.pairwise(widths)):
        weight = numpyro.param(
            f"{name}_weight_{number}",
            lambda key, wide=wide, narrow=narrow: jax.random.normal(key, (wide, narrow)) / jnp.sqrt(wide),
        )
        x = x @ weight + numpyro.param(f"{name}_bias_{number}", jnp.zeros(narrow))
        if number < len(widths) - 2:
            x = jax.nn.relu(x)
    return x


def normal(name, widths, dim, x):
    loc, scale = jnp.split(network(name, [*widths, 2 * dim], x), 2, -1)
    return dist.Normal(loc, jax.nn.softplus(scale) + 1e-4).to_event(1)


def main():
    features, hidden, dim, levels, rows = JOBS[sys.argv[1]]
    steps = int(sys.argv[2])

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample(f"z_{levels}", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
            for level in range(levels - 1, 0, -1):
                z = numpyro.sample(f"z_{level}", normal(f"prior_{level}", [dim, *hidden], dim, z))
            logits = network("decoder", [dim, *hidden[::-1], features], z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            for level in range(1, levels + 1):
                x = numpyro.sample(f"z_{level}", normal(f"encoder_{level}", [x.shape[-1], *hidden], dim, x))

    data = (jax.random.uniform(jax.random.PRNGKey(0), (steps, rows, features)) < 0.5).astype(jnp.float32)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    start = svi.init(jax.random.PRNGKey(1), data[0])
    update = jax.jit(svi.update)
    whole = jax.jit(lambda state, data: jax.lax.scan(svi.update, state, data))

    def by_steps():
        state = start
        for batch in data:
            state, loss = update(state, batch)
        jax.block_until_ready(loss)

    def by_scan():
        jax.block_until_ready(whole(start, data))

    by_steps(), by_scan()
    print("ready", flush=True)
    for _ in sys.stdin:
        taken = []
        for run in (by_steps, by_scan):
            began = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - began) / steps)
        print(*taken, flush=True)


if __name__ == "__main__":
    main()
