"""Tests of samples that state how often they fail falsely, and how to show that they would notice.

Every sampling test here rejects at FALSE_FAILURE, the probability that a right sampler fails one of its p-values. The
suite draws from fixed seeds, so that a failure repeats; over all of its p-values (below 1,000) a change of seeds would
fail a right library with a probability below 1e-6.
"""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

FALSE_FAILURE = 1e-9


def generator(seed: int = 0) -> torch.Generator:
    """A generator of the seed, apart from torch's own."""
    return torch.Generator().manual_seed(seed)


def frequencies_p_value(counts: Tensor, probabilities: Tensor) -> float:
    """The chi-square p-value of class counts (K,) against probabilities (K,); a class of probability 0 allows none."""
    observed, expected = counts.double().numpy(), probabilities.double().numpy()
    if observed[expected == 0].sum() > 0:
        return 0.0
    possible = expected > 0
    if possible.sum() == 1:
        return 1.0
    expected = expected[possible] / expected[possible].sum() * observed.sum()
    return float(stats.chisquare(observed[possible], expected).pvalue)


def mean_p_value(samples: Tensor, mean: Tensor) -> float:
    """The z-test's p-value, two-sided and Bonferroni-corrected, of sample means over dimension 0 against `mean`."""
    n = len(samples)
    z = (samples.mean(0) - mean) / (samples.std(0) / n**0.5)
    return float(min(1.0, 2 * stats.norm.sf(np.abs(z.double().numpy())).min() * z.numel()))


def distribution_p_value(samples: Tensor, cdf: object) -> float:
    """The Kolmogorov-Smirnov p-value of samples (n,) against a cumulative distribution function."""
    return float(stats.kstest(samples.double().numpy(), cdf).pvalue)
