"""After the last epoch: the weights to leave behind, and the last checkpoint."""

from pyro_vaes.infer.history import History
from pyro_vaes.infer.training.plan import Training
from pyro_vaes.infer.training.resume import save_run
from pyro_vaes.infer.training.weight_average import use_evaluation_weights

__all__ = ["close"]


def close(training: Training) -> History:
    """Let the callbacks finish, write the last checkpoint, and return the history."""
    run, plan = training.run, training.prepared.plan
    last = run.pair.snapshot()

    use_evaluation_weights(run)
    for callback in run.callbacks:
        callback.finish(run)
    if run.callbacks:  # without any, the weights are those of the last epoch's checkpoint
        save_run(training, last)

    if plan.fabric is not None:
        plan.fabric.barrier()  # nobody may look for the checkpoint before it is written
    return run.history
