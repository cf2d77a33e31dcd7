"""Images (3, height, width): every model trains on them, and its pictures are in colour."""

import numpy as np
import pytest
import torch
from helpers.images import cat_vae, semi_supervised, structured, trainer
from PIL import Image

from taugrad.data.augmentation import RandomAffine
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.data.images import Split
from taugrad.errors import ConfigError
from taugrad.models.pictures import grid, save
from taugrad.models.structured import Structured, halves
from taugrad.nets import ConvDecoder, ConvEncoder

SIZE = [3, 4, 6]


def colour(n=40):
    g = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (n, *SIZE), generator=g, dtype=torch.uint8), torch.arange(n) % 3)


def test_every_model_trains_is_tested_and_draws_in_colour(tmp_path):
    split = colour()
    x, labels = split.images / 255, split.labels
    for build in (cat_vae, structured, lambda image_size, centred: semi_supervised(image_size=image_size)):
        task = build(image_size=SIZE, centred=True)
        fit = trainer(tmp_path, max_steps=4)
        fit.fit(task, ShuffledBatches(split, 10, seed=0, stack=3), Batches(split, 10))  # a stack of three, then of one
        fit = trainer(tmp_path, max_steps=2)
        fit.fit(task, Batches(split, 10), Batches(split, 10))  # batches alone
        assert "test/loss" in fit.test(task, Batches(split, 10), verbose=False)[0]
        assert len(task.greedy(x)) == 40
        for picture in task.pictures(x, labels).values():
            assert picture.shape[0] == 3
            assert picture.ndim == 3


def test_a_size_that_differs_from_the_data_s_gets_a_sentence_with_the_right_one(tmp_path):
    fit = trainer(tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match=r"^model.image_size must be \[3, 4, 6\], the size of the data's images, got"):
        fit.fit(cat_vae(image_size=[4, 6]), ShuffledBatches(colour(), 10, seed=0), Batches(colour(), 10))
    for bad in ([4], [1, 3, 4, 4]):
        for build in (lambda size: ConvEncoder(size, [4], 5), lambda size: Structured(image_size=size)):
            with pytest.raises(ValueError, match=r"image_size must be height and width, or channels, height and width"):
                build(bad)
    with pytest.raises(ValueError, match=r"image_size\[1\], the height, must be even for two halves, got 5"):
        Structured(image_size=[3, 5, 4])
    with pytest.raises(ValueError, match=r"image_size\[2\] must be a multiple of 4 for 2 convolutions, got 6"):
        ConvEncoder([3, 4, 6], [4, 4], 5)


def test_a_completion_keeps_the_upper_half_of_every_channel():
    model, x = structured(image_size=SIZE).model, torch.rand(5, *SIZE)
    completed = model.greedy(x)
    assert completed.shape == x.shape
    assert torch.equal(halves(completed)[0], x[:, :, :2])


def test_a_grid_is_the_grid_of_each_channel_and_other_numbers_of_channels_are_grey_planes():
    images = torch.rand(2, 5, 3, 4, 6)
    assert torch.equal(grid(images), torch.stack([grid(images[:, :, c]) for c in range(3)]))
    assert torch.equal(grid(images[:, :, :1]), grid(images[:, :, 0]))
    assert torch.equal(grid(images[:, :, :2]), torch.cat([grid(images[:, :, c]) for c in range(2)]))


def test_a_saved_picture_reads_back_in_its_colours(tmp_path):
    picture = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]], [[0.0, 1.0]]])
    save(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[[255, 0, 0], [0, 128, 255]]]


def test_the_convolutions_take_and_give_every_channel():
    assert ConvEncoder([3, 8, 12], [4, 6], 10)(torch.zeros(5, 3, 8, 12)).shape == (5, 10)
    assert ConvDecoder(7, [4, 6], [3, 8, 12])(torch.zeros(2, 5, 7)).shape == (2, 5, 3 * 8 * 12)


def test_an_augmentation_moves_all_channels_of_an_image_alike():
    move = RandomAffine(degrees=20, scale=0.1, shear=0.1, shift=0.2)
    grey = torch.zeros(8, 16, 16)
    grey[:, 4:12, 6:8] = 1
    torch.manual_seed(0)
    moved = move(grey.unsqueeze(1).expand(-1, 3, -1, -1))
    assert moved.shape == (8, 3, 16, 16)
    centre = (moved * torch.arange(16.0)).sum((-1, -2)) / moved.sum((-1, -2))
    assert (centre - centre[:, :1]).abs().max() < 1.5  # pixels are sampled
    assert (centre[:, 0] - 6.5).abs().max() > 0.5
