"""Training with Lightning: tasks, callbacks, checkpoints, resuming."""
