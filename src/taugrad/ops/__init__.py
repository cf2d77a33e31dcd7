"""Functions of logits: noise, samples, relaxations and their gradients."""

from taugrad.ops import categorical, embedding, gates, gumbel, noise, onehot, permutations, softmax, subsets

__all__ = ["categorical", "embedding", "gates", "gumbel", "noise", "onehot", "permutations", "softmax", "subsets"]
