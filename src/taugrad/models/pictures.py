"""Pictures of images side by side, as TensorBoard and `scripts/evaluate.py` show them: tensors in [0, 1]."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

_MOST_LATENTS = 20  # rows of a traversal


def grid(images: Tensor) -> Tensor:
    """Return images (rows, columns, height, width) as one picture.

    >>> grid(torch.arange(4.0).view(2, 2, 1, 1))
    tensor([[0., 1.],
            [2., 3.]])
    """
    return images.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def traversal(z: Tensor) -> Tensor:
    """Return one-hot `z` (N, K) with one latent a row varied, a class a column: (rows, K, N, K).

    Rows are the first twenty latents at most.

    >>> traversal(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))[1, 0]
    tensor([[1., 0.],
            [1., 0.]])
    """
    N, K = z.shape
    n = torch.arange(min(N, _MOST_LATENTS), device=z.device)
    varied = z.repeat(len(n), K, 1, 1)
    varied[n, :, n] = torch.eye(K, dtype=z.dtype, device=z.device)
    return varied


def save(picture: Tensor, path: Path) -> None:
    """Write a picture (height, width) in [0, 1] as a PNG file of 256 greys."""
    grey = picture.mul(255).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(grey.cpu().numpy()).save(path)
