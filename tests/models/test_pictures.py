import numpy as np
import torch
from PIL import Image

from taugrad.models.pictures import grid, save, traversal


def test_a_grid_lays_images_row_by_row():
    images = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 2, 4)
    picture = grid(images)
    assert picture.shape == (4, 12)
    assert picture[::2, ::4].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_traversal_varies_one_latent_a_row_through_its_classes():
    z = torch.eye(3)[torch.tensor([2, 0, 1, 1])]
    varied = traversal(z)
    assert varied.shape == (4, 3, 4, 3)
    for n in range(4):
        for k in range(3):
            expected = z.clone()
            expected[n] = torch.eye(3)[k]
            assert torch.equal(varied[n, k], expected)


def test_a_traversal_of_many_latents_shows_the_first_twenty():
    assert traversal(torch.eye(2)[torch.zeros(200, dtype=torch.int64)]).shape == (20, 2, 200, 2)


def test_a_saved_picture_reads_back_as_its_256_greys(tmp_path):
    save(torch.tensor([[0.0, 1.0, 0.5], [0.25, 1.0, 0.0]]), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 255, 128], [64, 255, 0]]
