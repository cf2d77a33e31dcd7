"""Random changes of images that keep their class."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from taugrad.checks import check_share


@dataclass(frozen=True)
class RandomAffine:
    """Rotates, scales, shears and shifts each image by itself, uniformly up to the given amounts.

    Args:
        degrees: largest rotation, either way.
        scale: largest change of the size, as a share of it.
        shear: largest horizontal shear, in heights.
        shift: largest shift along both axes, as a share of the size.

    Raises:
        ValueError: an amount is out of range.

    >>> RandomAffine(degrees=10, scale=0.1, shear=0.15, shift=0.07)(torch.ones(5, 28, 28)).shape
    torch.Size([5, 28, 28])
    """

    degrees: float
    scale: float
    shear: float
    shift: float

    def __post_init__(self) -> None:
        for name in ("scale", "shear", "shift"):
            check_share(name, getattr(self, name))
        check_share("degrees / 180", self.degrees / 180)

    def __call__(self, x: Tensor) -> Tensor:
        """Change images (batch, height, width) or (batch, C, height, width) in [0, 1], all channels of one alike.

        Outside of them is 0, and pixels are sampled from {0, 1}.
        """
        # A shift by a share s of an image is 2 s in the units of the grid, which are half an image.
        most = math.radians(self.degrees), self.scale, self.shear, 2 * self.shift, 2 * self.shift
        angle, scale, shear, *shift = (amount * (2 * torch.rand(len(x), device=x.device) - 1) for amount in most)
        cos, sin, size = angle.cos(), angle.sin(), 1 + scale
        rows = [size * cos, shear - size * sin, shift[0], size * sin, size * cos, shift[1]]
        theta = torch.stack(rows, -1).view(-1, 2, 3).to(x.dtype)
        places = affine_grid(theta, [len(x), 1, *x.shape[-2:]], align_corners=False)
        planes = x.unsqueeze(1) if x.ndim == 3 else x
        return torch.bernoulli(grid_sample(planes, places, align_corners=False).view_as(x).clamp(0, 1))
