"""Everything that needs Lightning: tasks, callbacks, checkpoints, resuming."""
