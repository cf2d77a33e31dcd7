"""An estimator, a model and a data set of one's own."""

import torch

from taugrad.bounds import elbo
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.data.images import Split, Splits
from taugrad.estimators.base import Pathwise
from taugrad.models.pictures import grid
from taugrad.ops.categorical import bernoulli_log_prob
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import straight_through
from taugrad.training.images import ImageModel


class IdentityStraightThrough(Pathwise):
    """z = onehot(argmax(logits + g)), dz := dlogits: the derivative of softmax left out."""

    def sample(self, logits, tau=1.0, dim=-1, *, generator=None):
        return straight_through(gumbel_max(logits, dim=dim, generator=generator), logits)


class Mixture(ImageModel):
    """p(x) = 1/K sum_k prod_d Bernoulli(x_d; means_k), learned through q(k|x) = Cat(softmax(linear(x)))."""

    def __init__(self, components: int, image_size: list[int], estimator, tau, optimizer, lr_factor):
        super().__init__(image_size, estimator, tau, optimizer, lr_factor)
        self.save_hyperparameters(logger=False)
        self.logits = torch.nn.Linear(image_size[0] * image_size[1], components)
        self.means = torch.nn.Linear(components, image_size[0] * image_size[1], bias=False)

    def loss_terms(self, x, labels, step):
        logits = self.logits(x.flatten(1)).unsqueeze(-2)
        expected = self.estimator.expectation(lambda z: self.log_likelihood(x, z), logits, self.tau(step))
        return {"loss": -elbo(expected, logits).mean()}

    def evaluation_terms(self, x, labels, generator):
        logits = self.logits(x.flatten(1)).unsqueeze(-2)
        z = gumbel_max(logits, generator=generator)
        return {"loss": -elbo(self.log_likelihood(x, z), logits).mean()}, logits

    def test_terms(self, x, labels, generator):
        z = torch.eye(self.means.in_features).view(-1, 1, 1, self.means.in_features)
        prior = torch.tensor(1 / len(z)).log()
        return {"nll": -(self.log_likelihood(x, z) + prior).logsumexp(0).mean()}  # exact

    def greedy(self, x):
        return self.logits(x.flatten(1)).argmax(-1)

    def pictures(self, x, labels):
        return {"means": grid(self.means.weight.T.detach().sigmoid().view(1, -1, *self.image_size))}

    def log_likelihood(self, x, z):
        return bernoulli_log_prob(self.means(z.squeeze(-2)).expand(*z.shape[:-3], *x.flatten(1).shape), x.flatten(1))


def zeros_and_ones() -> Splits:
    """The embedded digits 0 and 1."""
    return Splits(*(Split(s.images[s.labels < 2], s.labels[s.labels < 2]) for s in binarized_mnist()))
