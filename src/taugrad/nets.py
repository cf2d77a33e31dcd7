"""Encoders and decoders, without any sampling."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from taugrad.checks import check_image_size


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "ReLU",
    layer_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build linear layers, from (..., inputs) to (..., outputs), with an activation between them; the last has none.

    Args:
        inputs: size of the input's last dimension.
        hidden: sizes of the hidden layers; an empty list makes the net linear.
        outputs: size of the output's last dimension.
        activation: the name of a class of `torch.nn` that needs no argument, such as ReLU or SiLU.
        layer_norm: normalize before each activation.
        dropout: probability that an activation is set to zero in training.

    Raises:
        ValueError: a size is below 1, or `activation` is not a module of `torch.nn`.

    >>> mlp(784, [200], 10)
    Sequential(
      (0): Linear(in_features=784, out_features=200, bias=True)
      (1): ReLU()
      (2): Linear(in_features=200, out_features=10, bias=True)
    )
    """
    kind = _activation(activation)
    sizes = [inputs, *hidden]
    if min(*sizes, outputs) < 1:
        raise ValueError(f"the sizes of an mlp must be at least 1, got {[*sizes, outputs]}")
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if layer_norm else []), kind()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


@torch.no_grad()
def start_at(net: nn.Sequential, mean: Tensor) -> None:
    r"""Set the last bias to $\mathrm{logit}(\mathrm{mean})$, so that the net's Bernoulli outputs start near `mean`.

    `net` is one of `mlp`, and `mean` the data's, of the size of the output, in [0, 1]; it is clamped to [0.001, 0.999].

    >>> net = mlp(5, [], 2)
    >>> start_at(net, torch.tensor([0.5, 0.0]))
    >>> net(torch.zeros(5)).sigmoid()
    tensor([0.5000, 0.0010], grad_fn=<SigmoidBackward0>)
    """
    cast(nn.Linear, net[-1]).bias.copy_(mean.clamp(1e-3, 1 - 1e-3).logit())


class ConvEncoder(nn.Module):
    """Convolutions that halve height and width, then one linear layer, each with an activation.

    Args:
        image_size: height and width, multiples of 2^n for n convolutions; or image channels, height and width.
        channels: output channels of each convolution.
        outputs: size of the output's last dimension.
        activation: the name of a class of `torch.nn`, as for `mlp`.

    Raises:
        ValueError: the image cannot be halved that often, or `activation` is not a module of `torch.nn`.

    >>> ConvEncoder([28, 28], [16, 32], 128)(torch.zeros(5, 28, 28)).shape
    torch.Size([5, 128])
    """

    def __init__(
        self, image_size: Sequence[int], channels: Sequence[int], outputs: int, activation: str = "ReLU"
    ) -> None:
        super().__init__()
        kind, (image_channels, *small) = _activation(activation), _halved(image_size, len(channels))
        self.grey = len(image_size) == 2
        layers: list[nn.Module] = []
        for a, b in pairwise([image_channels, *channels]):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), kind()]
        last = nn.Linear(channels[-1] * math.prod(small), outputs)
        self.net = nn.Sequential(*layers, nn.Flatten(), last, kind())

    def forward(self, x: Tensor) -> Tensor:
        """Encode images (batch, *image_size) to (batch, outputs)."""
        return self.net(x.unsqueeze(1) if self.grey else x)


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: one linear layer, then transposed convolutions that double height and width.

    Args:
        inputs: size of the input's last dimension.
        channels: input channels of each convolution, in the encoder's order.
        image_size: height and width of the output, or image channels, height and width.
        activation: the name of a class of `torch.nn`, as for `mlp`; errors are as for `ConvEncoder`.

    >>> ConvDecoder(60, [16, 32], [28, 28])(torch.zeros(3, 5, 60)).shape
    torch.Size([3, 5, 784])
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], image_size: Sequence[int], activation: str = "ReLU"
    ) -> None:
        super().__init__()
        kind, (image_channels, *small) = _activation(activation), _halved(image_size, len(channels))
        layers: list[nn.Module] = [nn.Linear(inputs, channels[-1] * math.prod(small)), kind()]
        layers.append(nn.Unflatten(-1, (channels[-1], *small)))
        for a, b in pairwise([*reversed(channels), image_channels]):
            layers += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), kind()]
        self.net = nn.Sequential(*layers[:-1], nn.Flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Decode (..., inputs) to (..., pixels), all channels of an image together."""
        return self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


class PictureEncoder(nn.Module):
    """Convolutions and one linear layer, each with a ReLU, of flattened pictures whose layout is read off their shape.

    Convolutions 4 x 4 of stride 2 halve the picture until its smaller side is at most 16, then comes one 3 x 3 of
    stride 1. The first has 16 filters, each further one twice as many, at most 64. Planes of 10 x 10 thus get the
    network of MinAtar (1903.03176): 16 filters 3 x 3, and the linear layer.

    Args:
        shape: of a picture before it is flattened, see `planes`.
        outputs: size of the output's last dimension.

    Raises:
        ValueError: `shape` is no picture's, or a side is below 3.

    >>> PictureEncoder((10, 10, 4), 128)
    PictureEncoder(
      (convolutions): Sequential(
        (0): Conv2d(4, 16, kernel_size=(3, 3), stride=(1, 1))
        (1): ReLU()
      )
      (last): Linear(in_features=1024, out_features=128, bias=True)
    )
    """

    def __init__(self, shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        _, channels, *sides = planes(torch.empty(1, math.prod(shape), device="meta"), self.shape).shape
        if min(sides) < _KERNEL:
            raise ValueError(f"the sides of a picture must be at least {_KERNEL}, got {sides[0]} x {sides[1]}")
        layers: list[nn.Module] = []
        filters = _FILTERS[0]
        while min(sides) > _SMALL:
            layers += [nn.Conv2d(channels, filters, 4, stride=2), nn.ReLU()]
            channels, filters, sides = filters, min(2 * filters, _FILTERS[1]), [side // 2 - 1 for side in sides]
        layers += [nn.Conv2d(channels, filters, _KERNEL), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.last = nn.Linear(filters * math.prod(side - _KERNEL + 1 for side in sides), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Encode flattened pictures (..., D) to (..., outputs)."""
        picture = planes(x.flatten(0, -2), self.shape)
        # MinAtar's own memory order: to change it, before or after, takes a fifth longer.
        y = self.convolutions(picture.contiguous(memory_format=torch.channels_last))
        return self.last(y.movedim(1, -1).flatten(1)).relu().unflatten(0, x.shape[:-1])


_KERNEL, _SMALL, _FILTERS = 3, 16, (16, 64)  # sizes of a `PictureEncoder`


def planes(x: Tensor, shape: Sequence[int]) -> Tensor:
    """View flattened pictures (n, D) as (n, channels, height, width).

    A `shape` of (height, width) has one channel. Of three numbers the two equal neighbours are height and width; if
    that decides nothing, the channels are the smaller one of the first and the last, or the last. Of four the first
    counts frames, as gymnasium stacks them, and the rest is a picture: the channels of all frames are joined.

    Raises:
        ValueError: `shape` is no picture's.

    >>> [planes(torch.empty(1, math.prod(s)), s).shape[1:] for s in [(210, 160, 3), (4, 84, 84), (5, 10, 10, 4)]]
    [torch.Size([3, 210, 160]), torch.Size([4, 84, 84]), torch.Size([20, 10, 10])]
    """
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            "a picture must be (height, width), (height, width, channels), (channels, height, width) or a stack of "
            f"such frames, got shape {tuple(shape)}"
        )
    x = x.unflatten(-1, tuple(shape))
    if len(shape) == 2:
        return x.unsqueeze(1)
    a, b, c = shape[-3:]
    last = a == b or (b != c and c <= a)
    x = x.movedim(-1, -3) if last else x
    return x.flatten(1, -3)


def _activation(name: str) -> type[nn.Module]:
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"activation must be the name of a module of torch.nn, such as ReLU or SiLU, got {name}")
    return kind


def _halved(image_size: Sequence[int], times: int) -> list[int]:
    """Return the channels of an image, 1 for grey, and its height and width, halved `times` times."""
    check_image_size(image_size)
    image_channels, *sizes = [1, *image_size] if len(image_size) == 2 else image_size
    for i, size in enumerate(sizes, start=len(image_size) - 2):
        if size % 2**times:
            raise ValueError(f"image_size[{i}] must be a multiple of {2**times} for {times} convolutions, got {size}")
    return [image_channels, *(size // 2**times for size in sizes)]
