"""What a sweep of several runs needs beside Hydra: its space, a study of Optuna, and a report of its jobs."""
