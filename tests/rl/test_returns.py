import math

import pytest
import torch

from taugrad.rl.returns import advantages

GAMMA = 0.9


def rollout(T=30, E=5):
    """Rewards, values and ends as they come: an end of either kind now and then."""
    reward, value = torch.randn(T, E, dtype=torch.float64), torch.randn(T + 1, E, dtype=torch.float64)
    terminated = torch.rand(T, E) < 0.1
    truncated = (torch.rand(T, E) < 0.1) & ~terminated
    return reward, value, terminated, truncated


def n_step_return(reward, value, terminated, truncated, t, e, n):
    """Return by its definition, one step after the other: until n steps, the end of the episode or of the rollout."""
    total, discount = 0.0, 1.0
    for k in range(n):
        total += discount * reward[t + k, e].item()
        discount *= GAMMA
        if terminated[t + k, e]:
            return total
        if truncated[t + k, e] or t + k + 1 == len(reward):
            return total + discount * value[t + k + 1, e].item()
    return total + discount * value[t + n, e].item()


def test_lambda_one_gives_the_discounted_returns():
    parts = rollout()
    returns = advantages(*parts, GAMMA, 1.0) + parts[1][:-1]
    for t in range(30):
        for e in range(5):
            assert math.isclose(returns[t, e], n_step_return(*parts, t, e, n=30), abs_tol=1e-12)


def test_lambda_zero_gives_the_one_step_returns():
    parts = rollout()
    returns = advantages(*parts, GAMMA, 0.0) + parts[1][:-1]
    for t in range(30):
        assert math.isclose(returns[t, 0], n_step_return(*parts, t, 0, n=1), abs_tol=1e-12)


def test_lambda_returns_are_the_mixture_of_n_step_returns():
    parts = rollout(T=12)
    lam = 0.7
    returns = advantages(*parts, GAMMA, lam) + parts[1][:-1]
    for t in range(12):
        longest = 12 - t
        n_step = [n_step_return(*parts, t, 1, n) for n in range(1, longest + 1)]
        mixture = (1 - lam) * sum(lam ** (n - 1) * g for n, g in enumerate(n_step[:-1], start=1))
        assert math.isclose(returns[t, 1], mixture + lam ** (longest - 1) * n_step[-1], abs_tol=1e-12)


def test_a_time_out_bootstraps_and_a_terminal_state_does_not():
    reward, value = torch.zeros(1), torch.tensor([0.0, 10.0])
    yes, no = torch.tensor([True]), torch.tensor([False])
    assert advantages(reward, value, no, yes, GAMMA, 0.95).item() == pytest.approx(9.0)
    assert advantages(reward, value, yes, no, GAMMA, 0.95).item() == 0.0


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_behind_an_end_counts(end):
    reward, value, *_ = rollout()
    ends = {name: torch.zeros(30, 5, dtype=torch.bool) for name in ("terminated", "truncated")}
    ends[end][10] = True
    before = advantages(reward, value, *ends.values(), GAMMA, 0.95)
    reward[11:], value[12:] = 100.0, 100.0
    after = advantages(reward, value, *ends.values(), GAMMA, 0.95)
    assert torch.equal(before[:11], after[:11])
    assert not torch.equal(before[11:], after[11:])


def test_ratios_of_one_or_more_change_nothing_and_smaller_ones_shorten_the_trace():
    parts = rollout()
    plain = advantages(*parts, GAMMA, 0.95)
    assert torch.equal(advantages(*parts, GAMMA, 0.95, ratio=1 + torch.rand(30, 5)), plain)
    torch.testing.assert_close(
        advantages(*parts, GAMMA, 0.95, ratio=torch.zeros(30, 5)), advantages(*parts, GAMMA, 0.0)
    )
    # A_t has the ratio of the *next* action in its trace, not its own.
    one = torch.ones(30, 5)
    one[7] = 0.0
    cut = advantages(*parts, GAMMA, 0.95, ratio=one)
    assert torch.equal(cut[7:], plain[7:])
    delta = advantages(*parts, GAMMA, 0.0)
    assert torch.equal(cut[6], delta[6])


def test_a_value_row_too_few_is_refused():
    with pytest.raises(ValueError, match="value must have one row more than reward's 3, got 3"):
        advantages(torch.zeros(3), torch.zeros(3), *torch.zeros(2, 3, dtype=torch.bool), 0.9, 0.9)
