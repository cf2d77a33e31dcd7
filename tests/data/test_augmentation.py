import pytest
import torch
from scipy import ndimage

from taugrad.data.augmentation import RandomAffine

NONE = {"degrees": 0, "scale": 0, "shear": 0, "shift": 0}


def image():
    """A bar of a 16 x 16 image, not in its middle."""
    x = torch.zeros(16, 16)
    x[4:12, 6:8] = 1
    return x


def centers(x):
    return torch.tensor([ndimage.center_of_mass(one.numpy()) for one in x])


def test_amounts_of_zero_change_nothing():
    x = torch.randint(2, (20, 16, 16)).float()
    assert torch.equal(RandomAffine(**NONE)(x), x)
    assert torch.equal(RandomAffine(**NONE)(x.double()), x.double())


def test_each_image_is_moved_by_itself_and_by_at_most_the_shift():
    moved = RandomAffine(**(NONE | {"shift": 0.125}))(image().expand(500, -1, -1))  # two pixels
    shifts = centers(moved) - centers(image()[None])
    assert 1.5 < shifts.abs().max() < 2.9  # two, and what drawing the pixels adds
    assert (shifts.mean(0).abs() < 0.25).all()
    assert (shifts.std(0) > 0.8).all()
    assert abs(torch.corrcoef(shifts.T)[0, 1]) < 0.25


def test_rotation_turns_about_the_middle_by_at_most_the_degrees():
    x = torch.zeros(16, 16)
    x[7:9] = 1  # a horizontal bar through the middle
    turned = RandomAffine(**(NONE | {"degrees": 20}))(x.expand(300, -1, -1))
    columns = torch.arange(16.0) - 7.5
    slopes = []
    for one in turned:
        i, j = torch.nonzero(one, as_tuple=True)
        slopes.append(torch.atan(((i - 7.5) * columns[j]).sum() / columns[j].square().sum()).rad2deg())
    slopes = torch.stack(slopes)
    assert 15 < slopes.abs().max() < 23
    assert slopes.min() < 0 < slopes.max()


def test_scale_changes_the_size_and_shear_slants_rows():
    x = torch.zeros(16, 16)
    x[4:12, 4:12] = 1
    scaled = RandomAffine(**(NONE | {"scale": 0.25}))(x.expand(300, -1, -1)).sum((1, 2))
    assert scaled.min() < 0.75 * 64
    assert scaled.max() > 1.4 * 64
    sheared = RandomAffine(**(NONE | {"shear": 0.5}))(image().expand(300, -1, -1))
    top, bottom = (centers(part)[:, 1] for part in (sheared[:, 4:6], sheared[:, 10:12]))
    assert (top - bottom).abs().max() > 1.5
    assert (sheared.sum(2).bool().sum(1) == 8).all()  # no row comes or goes


def test_pixels_stay_binary_and_the_random_state_decides():
    augment = RandomAffine(degrees=10, scale=0.1, shear=0.15, shift=0.07)
    x = torch.randint(2, (20, 16, 16)).float()
    torch.manual_seed(1)
    a = augment(x)
    assert ((a == 0) | (a == 1)).all()
    assert not torch.equal(a, augment(x))
    torch.manual_seed(1)
    assert torch.equal(a, augment(x))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shift": -0.1}, r"shift must be in \[0, 1\], got -0.1"),
        ({"scale": 2.0}, r"scale must be in \[0, 1\], got 2.0"),
        ({"degrees": 270}, r"degrees / 180 must be in \[0, 1\], got 1.5"),
    ],
)
def test_amounts_out_of_range_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomAffine(**(NONE | changes))
