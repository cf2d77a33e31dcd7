<<<<<<< HEAD
"""Everything that needs Lightning: tasks, callbacks, checkpoints, resuming."""
=======
"""Training with Lightning: tasks, callbacks, checkpoints, resuming."""
>>>>>>> h2
