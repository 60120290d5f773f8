"""Training under Lightning's Fabric: one process changes nothing, several share parameters and not noise."""

import functools
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch import nn

from pyro_vaes.infer import ClipGradNorm, EarlyStopping, KLWarmup, fit
from pyro_vaes.infer.batches.batches import as_batches
from pyro_vaes.infer.batches.sources import TensorSource
from tests.infer.pairs import D, binary, binary_vae, losses, param_pair, same, weights

lightning_fabric = pytest.importorskip("lightning_fabric")
ROOT = pathlib.Path(__file__).parents[2]
quick = functools.partial(fit, epochs=3, batch_size=32, seed=5, progress=False)


@pytest.fixture
def fabric():
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return fabric


def test_one_process_changes_no_bit(fabric, tmp_path):
    ends = []
    for given in (None, fabric):
        vae = binary_vae(middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        callbacks = [EarlyStopping(50), KLWarmup(7), ClipGradNorm(1.0)]
        history = quick(
            vae.model, vae.guide, binary(), valid=binary(50), callbacks=callbacks, fabric=given,
            checkpoint=tmp_path / str(given is None),
        )  # fmt: skip
        ends.append((weights(vae), losses(history)))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_what_fabric_cannot_share(fabric):
    with pytest.raises(ValueError, match=r"nn.Parameters of modules, but.*pyro.param"):
        quick(*param_pair(), torch.randn(64, D), fabric=fabric)
    vae = binary_vae()
    with pytest.raises(ValueError, match="TraceGraph_ELBO has none"):
        quick(vae.model, vae.guide, binary(), fabric=fabric, loss=TraceGraph_ELBO())


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 65])
def test_processes_share_each_batch_equally(rows):
    data = TensorSource(torch.arange(rows))
    alone = [b for (b,) in as_batches(data, 8, shuffle=True).epoch(3, 2, torch.device("cpu"))]
    ranks = [as_batches(data, 8, shuffle=True, rank=r, world_size=4) for r in range(4)]
    shares = [[b for (b,) in batches.epoch(3, 2, torch.device("cpu"))] for batches in ranks]
    assert {len(batches) for batches in ranks} == {len(share) for share in shares} == {len(alone)}
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        assert len({len(p) for p in parts}) == 1 and len(parts[0]) > 0
        assert set(batch.tolist()) <= set(torch.cat(parts).tolist())
        assert sum(map(len, parts)) - len(batch) < 4
    held_out = [as_batches(data, 8, shuffle=False, rank=r, world_size=4) for r in range(4)]
    seen = [b for batches in held_out for (b,) in batches.epoch(0, 0, torch.device("cpu"))]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(rows)) and all(len(b) for b in seen)
    with pytest.raises(ValueError, match="choose a multiple of 4"):
        as_batches(data, 6, shuffle=True, world_size=4)


SCRIPT = """
    import sys
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()  # before the other imports, so that both processes import at once

    import torch
    from torch import nn
    from tests.infer.pairs import binary, binary_vae
    from pyro_vaes.infer import Callback, EarlyStopping, KLWarmup, fit

    out = sys.argv[1]

    class Noise(Callback):
        def __init__(self):
            self.draws, self.first = [], True

        def epoch(self, run):
            self.draws.append(torch.rand(()).item())

    def run(name, fabric, epochs):
        vae = binary_vae(seed=fabric.global_rank, middle=nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)))
        noise = Noise()
        history = fit(
            vae.model, vae.guide, binary(69), valid=binary(33), epochs=epochs, batch_size=16, fabric=fabric, seed=None,
            progress=False, checkpoint=f"{out}/{name}", resume=True, callbacks=[EarlyStopping(50), KLWarmup(9), noise],
        )
        values = {n: t.clone() for n, t in vae.state_dict().items()}
        return {"weights": values, "draws": noise.draws, "history": [history.train, history.valid, history.grad_norm]}

    torch.set_num_threads(1)
    torch.manual_seed(100 + fabric.global_rank)  # ranks that were not seeded alike
    results = {"whole": run("whole", fabric, 4)}
    torch.manual_seed(100 + fabric.global_rank)
    results["start"] = run("parts", fabric, 2)
    results["parts"] = run("parts", fabric, 4)
    torch.save(results, f"{out}/rank{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "NODE_", "WORLD_", "MASTER_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in ("whole", "start", "parts"):
        assert same(first[name]["weights"], second[name]["weights"])
        assert first[name]["history"] == second[name]["history"]
        assert not set(first[name]["draws"]) & set(second[name]["draws"])
    for rank in (first, second):
        assert same(rank["parts"]["weights"], rank["whole"]["weights"])
        assert rank["parts"]["history"] == rank["whole"]["history"]
        assert rank["start"]["draws"] + rank["parts"]["draws"] == rank["whole"]["draws"]
