r"""A discrete VAE: a picture of binarized MNIST as 49 tokens of 64 codes, by a `CategoricalQuantizer`, and back.

    q(z|x) = prod_n Cat(z_n; softmax(encoder(x)_n)),   e_n = codebook[z_n],   n of 7 x 7 places
    loss   = -E_q log p(x | decoder(e)) + beta KL(q(z|x) || uniform)

In training the tokens are drawn, and the quantizer's loss is the KL, in nats of all places together; in evaluation they
are the most probable ones. beta grows to 1 in the first half: at once, the KL would leave every choice to chance.

    python examples/dvae.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import Tensor, nn

import taugrad
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.layers import CategoricalQuantizer
from taugrad.ops.categorical import bernoulli_log_prob

PLACES = 49


class DVAE(nn.Module):
    def __init__(self, estimator: taugrad.Pathwise, codes: int, dim: int = 16, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU()
        )
        self.quantizer = CategoricalQuantizer(2 * width, codes, estimator, code_dim=dim, weight=1.0, channel_first=True)
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, 2 * width, 3, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """Negative log-likelihood and KL in nats a picture, and the tokens (batch, 7, 7)."""
        e, tokens, kl = self.quantizer(self.encoder(x), tau)
        return -bernoulli_log_prob(self.decoder(e).flatten(1), x.flatten(1)).mean(), PLACES * kl, tokens


def train(data, steps, seed, estimator, codes=64, learned=True) -> tuple[float, float, float]:
    """Test NLL by the most probable tokens of 1,000 pictures, and the perplexity and share of the codes in use."""
    torch.manual_seed(seed)
    model = DVAE(estimator, codes)
    if not learned:  # tokens of an encoder that stays as it was drawn
        model.encoder.requires_grad_(requires_grad=False)
        model.quantizer.projection.requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    tau = taugrad.Linear(1.0, 0.5, steps=steps)
    for step in range(steps):
        x = data.train.images[torch.randint(len(data.train.labels), (32,))].unsqueeze(1) / 255
        nll, kl, _ = model(x, tau(step))
        optimizer.zero_grad()
        (nll + min(1.0, 2 * step / steps) * kl).backward()
        optimizer.step()
    with torch.no_grad():
        nll, _, tokens = model.eval()(data.test.images[:1000].unsqueeze(1) / 255, 1.0)
        perplexity, share = model.quantizer.usage(tokens)
    return nll.item(), perplexity.item(), share.item()


def main(steps: int = 2000, seed: int = 0) -> dict[str, float]:
    data, figures = binarized_mnist(), {}
    for name, estimator, learned in (
        ("hard", taugrad.STGumbelSoftmax(), True),
        ("fixed", taugrad.STGumbelSoftmax(), False),
    ):
        found = train(data, steps, seed, estimator, learned=learned)
        figures |= dict(zip((name, f"{name}_perplexity", f"{name}_share"), found, strict=True))
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
