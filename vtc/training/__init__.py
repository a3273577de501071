"""`vtc.train`: the loop, its samples and its checkpoints."""
