"""What outlives a run: checkpoints, prompt files, results and the folder that holds
them."""
