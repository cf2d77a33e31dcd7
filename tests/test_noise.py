import pytest
import torch
from conftest import by_torch_alone
from scipy import stats
from statistics_of_samples import FALSE_FAILURE, distribution_p_value

from taugrad.noise import gumbel_noise

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_gumbel_distributed(dtype):
    g = gumbel_noise(torch.empty(200_000, dtype=dtype))
    assert distribution_p_value(g, stats.gumbel_r.cdf) > FALSE_FAILURE


def test_the_noise_test_has_power():
    shifted = gumbel_noise(torch.empty(200_000)) + 0.02
    assert distribution_p_value(shifted, stats.gumbel_r.cdf) < FALSE_FAILURE


def test_neighbours_in_the_noise_are_independent():
    g = gumbel_noise(torch.empty(2, 200_000, dtype=torch.float64))
    g = (g - g.mean()) / g.std()
    n = g.shape[1]
    correlations = [(g[0] * g[1]).mean(), (g[0, 1:] * g[0, :-1]).mean()]
    for r in correlations:
        assert 2 * stats.norm.sf(abs(r.item()) * n**0.5) > FALSE_FAILURE


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_finite_for_every_number_that_torch_rand_can_give(dtype, monkeypatch):
    step = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    extremes = lambda shape, generator, dtype, device: torch.tensor([0.0, step, 0.5, 1 - step, 1.0], dtype=dtype)  # noqa: E731
    monkeypatch.setattr(torch, "rand", extremes)
    with by_torch_alone():
        g = gumbel_noise(torch.empty(5, dtype=dtype))
    assert torch.isfinite(g).all()
    assert (g.diff() >= 0).all()


def test_ten_million_draws_are_finite_and_within_the_documented_range(backend):
    g = gumbel_noise(torch.empty(10_000_000))
    low, high = {"torch": (-2.86, 16.64), "native": (-3.14, 22.9)}[backend]
    assert g.min() >= low
    assert g.max() <= high


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_dtype_of_the_calculation(dtype):
    assert gumbel_noise(torch.empty(3, dtype=dtype)).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )


def test_a_generator_determines_the_noise_and_spares_the_global_state():
    before = torch.get_rng_state()
    a, b = (gumbel_noise(torch.empty(100), generator=generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a, gumbel_noise(torch.empty(100), generator=generator(4)))
