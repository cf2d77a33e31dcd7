"""Pictures of images side by side, as TensorBoard and `scripts/evaluate.py` show them: tensors in [0, 1].

A picture is (height, width) in grey, or (3, height, width) in red, green and blue.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

_MOST_LATENTS = 20  # rows of a traversal


def grid(images: Tensor) -> Tensor:
    """Return images (rows, columns, height, width), or (rows, columns, C, height, width), as one picture.

    Three channels are red, green and blue; of any other number each is a grey picture, one above the next.

    >>> grid(torch.arange(4.0).view(2, 2, 1, 1))
    tensor([[0., 1.],
            [2., 3.]])
    >>> grid(torch.zeros(2, 5, 3, 32, 32)).shape
    torch.Size([3, 64, 160])
    """
    picture = images.movedim((0, 1), (-4, -2)).flatten(-2).flatten(-3, -2)  # (..., rows, height, columns, width)
    return picture if picture.ndim == 2 or len(picture) == 3 else picture.flatten(0, 1)


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
    """Write a picture (height, width) or (3, height, width) in [0, 1] as a PNG file of 256 levels."""
    levels = picture.mul(255).round().clamp(0, 255).to(torch.uint8)
    if levels.ndim == 3:
        levels = levels.movedim(0, -1).contiguous()
    Image.fromarray(levels.cpu().numpy()).save(path)
