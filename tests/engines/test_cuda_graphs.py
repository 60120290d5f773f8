"""CUDA graphs of whole steps; skipped where there is no GPU."""

import pytest
import torch

from pyro_vaes.infer import ClipGradNorm, KLWarmup, fit
from pyro_vaes.infer.engines.cuda_graphs import CudaGraph
from pyro_vaes.infer.engines.reads import CannotCapture
from tests.infer.pairs import binary, binary_vae, weights

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_a_replay_is_a_run_on_other_tensors():
    state = torch.zeros((), device="cuda")

    def function(x, count):
        count.add_(1)
        return [x.sum(), 2 * x]

    graph = CudaGraph(function, [torch.ones(3, device="cuda"), state], num_fixed=1)
    before = state.item()
    total, doubled = graph(torch.full((3,), 2.0, device="cuda"), state)
    assert total.item() == 6 and doubled.tolist() == [4, 4, 4] and state.item() == before + 1
    with pytest.raises(CannotCapture, match="other tensors"):
        graph(torch.ones(3, device="cuda"), state.clone())


def test_what_waits_for_the_host_is_refused():
    with pytest.raises(CannotCapture, match="no CUDA graph"):
        CudaGraph(lambda x: [x * x.sum().item()], [torch.ones(3, device="cuda")])


@pytest.mark.parametrize("mode", ["capture", True])
def test_training_on_a_gpu_is_eager_training_up_to_rounding(mode):
    ends = []
    for compile in (False, mode):
        vae = binary_vae()
        history = fit(
            vae.model,
            vae.guide,
            binary(160),
            epochs=5,
            batch_size=8,
            seed=5,
            device="cuda",
            progress=False,
            compile=compile,
            callbacks=[KLWarmup(50), ClipGradNorm(0.5)],
        )
        ends.append((weights(vae), history))
    assert ends[1][1].engine == ("captured" if mode == "capture" else "compiled")
    for name, tensor in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], tensor, rtol=1e-4, atol=1e-5)
