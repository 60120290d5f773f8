"""The training loop: steps, callbacks, checkpoints, evaluation."""
