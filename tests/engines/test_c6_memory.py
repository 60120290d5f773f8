"""C6: a recorded step takes little more memory than the eager one."""

import subprocess
import sys

CODE = """
import resource, sys, torch
torch.set_num_threads(1)
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead

torch.manual_seed(0)
encoder = Chain(MLP(784, [400], 400, activate_output=True), NormalHead(400, 20))
vae = VAE(encoder, MLP(20, [400], 784), BernoulliLikelihood(), 20)
x = torch.bernoulli(torch.full((2048, 784), 0.4))
mode = {"False": False}.get(sys.argv[1], sys.argv[1])
history = fit(vae.model, vae.guide, x, epochs=3, batch_size=256, seed=0, progress=False, compile=mode)
print(history.engine, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(mode):
    """The engine that ran, and the largest memory of a process of its own."""
    found = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True)
    engine, memory = found.stdout.split()
    return engine, int(memory)


def test_c6_captured_steps_take_the_memory_of_eager_ones():
    (eager, least), (captured, most) = peak("False"), peak("capture")
    assert (eager, captured) == ("eager", "captured")
    assert most <= 1.2 * least
