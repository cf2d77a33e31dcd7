"""Sweeps of several runs, on top of Hydra: their jobs, a study of Optuna, and a report."""
