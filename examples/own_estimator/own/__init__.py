"""An estimator, a model and a data set of one's own."""

import torch

from taugrad import Pathwise, gumbel_max, straight_through
from taugrad.bounds import elbo
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.data.images import Split, Splits
from taugrad.models.pictures import grid
from taugrad.ops.categorical import bernoulli_log_prob


class IdentityStraightThrough(Pathwise):
    """z = onehot(argmax(logits + g)), dz := dlogits: the derivative of softmax left out."""

    def sample(self, logits, tau=1.0, *, generator=None):
        return straight_through(gumbel_max(logits, generator=generator), logits)


class Mixture(torch.nn.Module):
    """p(x) = 1/K sum_k prod_d Bernoulli(x_d; means_k), learned through q(k|x) = Cat(softmax(linear(x)))."""

    image_size = (28, 28)

    def __init__(self, components: int):
        super().__init__()
        self.logits, self.means = torch.nn.Linear(784, components), torch.nn.Linear(components, 784, bias=False)

    def loss_terms(self, x, labels, estimator, tau):
        logits = self.logits(x.flatten(1)).unsqueeze(-2)
        return {"loss": -elbo(estimator.expectation(lambda z: self.log_likelihood(x, z), logits, tau), logits).mean()}

    def test_terms(self, x, labels, generator):
        K = self.means.in_features
        every = torch.eye(K, device=x.device).view(K, 1, 1, K)
        return {"nll": -(self.log_likelihood(x, every).logsumexp(0) - torch.tensor(K).log()).mean()}  # exact

    def greedy(self, x):
        return self.logits(x.flatten(1)).argmax(-1)

    def pictures(self, x, labels):
        return {"means": grid(self.means.weight.T.detach().sigmoid().view(1, -1, *self.image_size))}

    def log_likelihood(self, x, z):
        return bernoulli_log_prob(self.means(z.squeeze(-2)).expand(*z.shape[:-3], *x.flatten(1).shape), x.flatten(1))


def zeros_and_ones() -> Splits:
    """The embedded digits 0 and 1."""
    return Splits(*(Split(s.images[s.labels < 2], s.labels[s.labels < 2]) for s in binarized_mnist()))
