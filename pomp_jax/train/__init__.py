"""Training: setup, loop, monitoring, checkpoints, results."""
