r"""A prior over the tokens of a trained tokenizer: the second stage of DALL-E (2102.12092) and VQ-VAE (1711.00937).

    log p(z) = sum_n log p(z_n | z_1 ... z_{n-1}),   z = the most probable tokens of a picture, row by row

A causal transformer gives the next token's logits. Pictures are drawn token by token, and decoded. As any single z
bounds the likelihood, log p(x) >= log p(x|z) + log p(z), a tokenizer with a discrete likelihood gives bits a dimension.
"""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from taugrad.checks import check_count, check_share
from taugrad.errors import ConfigError
from taugrad.estimators import Estimator
from taugrad.models.pictures import grid
from taugrad.models.tokenizer import Tokenizer
from taugrad.ops._torch import readable
from taugrad.ops.gumbel import gumbel_max

_ROWS, _COLUMNS = 5, 10  # grid of the picture of samples


class TokenPrior(nn.Module):
    """A causal transformer over the tokens of a frozen tokenizer, trained by their exact likelihood.

    No choice is sampled in training, so that its loss uses neither an estimator nor tau.

    Args:
        tokenizer: a trained one; its weights stay as they are.
        width: of the transformer, divisible by `heads`.
        depth: its number of layers.
        heads: of its attention.
        dropout: probability that an activation is set to zero in training.

    Raises:
        ValueError: a size is out of range.

    >>> prior = TokenPrior(Tokenizer([8, 8], codes=16, channels=[4, 4], dim=4), width=8, depth=1, heads=2)
    >>> prior.sample(3, Generator().manual_seed(0)).shape
    torch.Size([3, 2, 2])
    """

    def __init__(
        self, tokenizer: Tokenizer, width: int = 128, depth: int = 4, heads: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, size in {"width": width, "depth": depth, "heads": heads}.items():
            check_count(name, size)
        if width % heads:
            raise ValueError(f"width must be divisible by heads, {heads}, got {width}")
        check_share("dropout", dropout)
        self.tokenizer = tokenizer.requires_grad_(False)
        self.image_size = tokenizer.image_size
        self.grid_size = tuple(size // tokenizer.stride for size in self.image_size[-2:])
        self.codes = tokenizer.quantizer.codes
        N = math.prod(self.grid_size)
        self.metrics = tuple(f"{split}/bits_per_token" for split in ("val", "test"))
        if tokenizer.likelihood.discrete:
            self.metrics += ("test/bits_per_dim",)
        self.embedding = nn.Embedding(self.codes + 1, width)  # the last one starts a picture
        self.position = nn.Parameter(0.02 * torch.randn(N, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, self.codes)
        self.register_load_state_dict_pre_hook(_require_the_same_tokenizer)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits (batch, n, K) of tokens 1 ... n from those before each, for `tokens` (batch, n - 1)."""
        start = tokens.new_full((len(tokens), 1), self.codes)
        x = self.embedding(torch.cat([start, tokens], 1))
        n = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=x.device, dtype=x.dtype)
        return self.head(self.layers(x + self.position[:n], mask=mask, is_causal=True))

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Return log p(z), (batch,), in nats, of tokens (batch, height, width), int64.

        Raises:
            TypeError: they are of another dtype.
            ValueError: they are grids of another size, or, where reading is free, not in 0 to K - 1.
        """
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens must be torch.int64, got {tokens.dtype}")
        if tokens.shape[1:] != self.grid_size:
            raise ValueError(f"tokens must be grids of {self.grid_size}, got {tuple(tokens.shape[1:])}")
        if readable(tokens) and not ((tokens >= 0) & (tokens < self.codes)).all():
            got = f"{int(tokens.min())} to {int(tokens.max())}"
            raise ValueError(f"tokens must be in 0 to {self.codes - 1}, got {got}")
        z = tokens.flatten(1)
        return -cross_entropy(self.logits(z[:, :-1]).transpose(1, 2), z, reduction="none").sum(1)

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return -log p(z) of the pictures' tokens, in nats, and in bits a token."""
        with torch.no_grad():
            tokens = self.tokenizer.greedy(x)
        loss = -self.log_prob(tokens).mean()
        return {"loss": loss, "bits_per_token": loss / (math.log(2) * tokens[0].numel())}

    def test_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> dict[str, Tensor | float]:
        """Return the bound -(log p(x|z) + log p(z)) in bits a dimension, where the likelihood is discrete."""
        if not self.tokenizer.likelihood.discrete:
            return {}
        tokens = self.tokenizer.greedy(x)
        log_p = self.tokenizer.log_likelihood_of(x, tokens) + self.log_prob(tokens)
        return {"bits_per_dim": -log_p.mean() / (math.log(2) * x[0].numel())}

    @torch.no_grad()
    def sample(self, count: int, generator: Generator | None = None) -> Tensor:
        """Draw grids of tokens, (count, height, width), one token after another."""
        tokens = torch.empty(count, 0, dtype=torch.int64, device=self.position.device)
        for _ in range(len(self.position)):
            drawn = gumbel_max(self.logits(tokens)[:, -1], generator=generator).argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, drawn], 1)
        return tokens.unflatten(1, self.grid_size)

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return pictures of the prior's samples, and of the first of `x` as the tokenizer knows them."""
        generator = Generator(x.device).manual_seed(0)
        samples = self.tokenizer.picture(self.sample(_ROWS * _COLUMNS, generator)).unflatten(0, (_ROWS, _COLUMNS))
        return {"prior_samples": grid(samples)} | self.tokenizer.pictures(x, labels)


def _require_the_same_tokenizer(
    module: TokenPrior, state: dict[str, Any], prefix: str, metadata: dict[str, Any], strict: bool, *_: Any
) -> None:
    """Refuse a state with a tokenizer of other shapes: its run may have been replaced since the prior was trained.

    Other weights of the same shapes do no harm: the state holds those that the prior was trained with, and they win.
    """
    sizes = (("codes", "head.weight", module.codes), ("tokens of a picture", "position", len(module.position)))
    replaced = "was the run of model.tokenizer.run replaced?"
    for what, name, own in sizes:
        weight = state.get(f"{prefix}{name}")
        if weight is not None and len(weight) != own:
            trained = f"the {len(weight)} {what} that the prior was trained on"
            raise ConfigError(f"tokenizer must have {trained}, got one of {own}: {replaced}")
    start = f"{prefix}tokenizer."
    found = {name: weight.shape for name, weight in state.items() if name.startswith(start)}
    shapes = {f"{start}{name}": weight.shape for name, weight in module.tokenizer.state_dict().items()}
    if strict and found and found != shapes:
        raise ConfigError(f"tokenizer must have the net that the prior was trained on, got another: {replaced}")
