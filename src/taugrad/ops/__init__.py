"""Functions of logits, in the order of the equations: noise, samples, relaxations, their gradients."""

from taugrad.ops import categorical, gumbel, noise, onehot, permutations, softmax, subsets

__all__ = ["categorical", "gumbel", "noise", "onehot", "permutations", "softmax", "subsets"]
