import math

import pytest
import torch
from helpers.environments import counters

from taugrad.errors import ConfigError
from taugrad.estimators import Enumeration
from taugrad.rl import evaluation, rollouts
from taugrad.rl.actor import Actor, RunningNorm, log_prob_of
from taugrad.rl.environments import Environments, make
from taugrad.rl.evaluation import evaluate, interquartile_mean, record
from taugrad.rl.multilinear import Advantage, multilinear
from taugrad.rl.rollouts import Collector, Window
from taugrad.rl.spaces import Sizes

ONE = Sizes((1,), (2,))


def alternate(x, mask):
    """Choices and their log-probability, which can be told apart."""
    return torch.arange(len(x)).remainder(2)[:, None], -torch.arange(float(len(x)))


def test_a_rollout_holds_every_transition_once_and_no_reset():
    environments = counters()  # episodes of 3 steps
    window = Window(3, steps=5, num_envs=2, sizes=ONE)
    collector = Collector(environments, seed=0)
    for _ in range(2):
        collector.fill(window.oldest(), alternate)
    both = window.sample(newest=2, others=0)  # the newest first: columns 2, 3 came before columns 0, 1
    x = torch.cat([both.observation[:5, 2], both.observation[:5, 0]])[:, 0]
    x_next = torch.cat([both.observation[1:, 2], both.observation[1:, 0]])[:, 0]
    valid = torch.cat([both.valid[:, 2], both.valid[:, 0]])
    terminated = torch.cat([both.terminated[:, 2], both.terminated[:, 0]])
    assert x.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert valid.tolist() == [True, True, True, False, True, True, True, False, True, True]
    assert torch.equal(x_next[valid], x[valid] + 1)  # the next observation is of the same episode
    assert terminated.tolist() == [False, False, True, False, False, False, True, False, False, False]
    assert both.action[:, :2, 0].tolist() == [[0, 1]] * 5
    assert both.log_mu[:, :2].tolist() == [[0.0, -1.0]] * 5
    assert collector.env_steps == 16
    assert list(collector.returns) == [3.0] * 4
    assert list(collector.lengths) == [3] * 4


def test_the_window_keeps_the_last_rollouts_and_samples_the_newest_first():
    window = Window(3, steps=2, num_envs=1, sizes=ONE)
    assert len(window) == 0
    for i in range(5):
        window.oldest().reward.fill_(i)
        newest = window.sample(newest=1, others=0)
        assert newest.reward[..., 0].tolist() == [[i], [i]]
    assert len(window) == 3
    assert window.sample(newest=2, others=0).reward[0, :, 0].tolist() == [4, 3]
    everything = window.sample(newest=1, others=100).reward[0, :, 0].tolist()
    assert everything[0] == 4
    assert sorted(everything) == [2, 3, 4]


def test_older_rollouts_are_drawn_alike():
    # 2 of 4, 2,000 times: each 1,000 times +- 22; six standard errors fail once in 10^8.
    window = Window(5, steps=1, num_envs=1, sizes=ONE)
    for i in range(5):
        window.oldest().reward.fill_(i)
    drawn = torch.cat([window.sample(1, 2).reward[0, 1:, 0] for _ in range(2000)]).long()
    assert (drawn.bincount(minlength=5)[:4] - 1000).abs().max() < 134
    assert (drawn == 4).sum() == 0


def test_a_window_comes_back_from_its_state_and_refuses_another_size():
    window = Window(3, steps=2, num_envs=1, sizes=ONE)
    for i in range(4):
        window.oldest().reward.fill_(i)
    again = Window(3, steps=2, num_envs=1, sizes=ONE)
    again.load_state_dict(window.state_dict())
    assert torch.equal(again.sample(3, 0).reward, window.sample(3, 0).reward)
    again.oldest().reward.fill_(9)
    assert again.sample(3, 0).reward[0, :, 0].tolist() == [9, 3, 2]
    other = Window(3, steps=2, num_envs=4, sizes=ONE)
    with pytest.raises(
        ValueError, match=r"the rollouts' observation must have shape \(3, 3, 4, 1\), got \(3, 3, 1, 1\)"
    ):
        other.load_state_dict(window.state_dict())


def test_a_window_without_memory_is_refused_in_a_sentence(monkeypatch):
    large = Sizes((10_000, 10_000, 3), (2,))
    with pytest.raises(ConfigError, match=r"no memory for 31,680 GB: 100 rollouts \(collection.window\) of 32 "):
        Window(100, 32, 8, large)
    monkeypatch.setattr(rollouts, "_memory", lambda: math.inf)  # as on a system that does not say
    with pytest.raises(ConfigError, match=r"no memory for .* observations of 300,000,000 numbers; fewer rollouts or"):
        Window(10**9, 32, 8, large)


def test_the_running_mean_and_variance_are_those_of_all():
    norm = RunningNorm(3)
    parts = [torch.randn(n, 3) * 5 + 2 for n in (1, 7, 0, 100, 3)]
    for part in parts:
        norm.update(part)
    x = torch.cat(parts)
    torch.testing.assert_close(norm.mean, x.double().mean(0))
    torch.testing.assert_close(norm.variance, x.double().var(0, correction=0))
    assert norm(x).abs().max() <= 10
    torch.testing.assert_close(norm(x[:5]), (x[:5] - x.mean(0)) / x.std(0, correction=0))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e9, -1e9])
def test_normalized_observations_are_the_same_wherever_they_lie(offset):
    far, near = RunningNorm(3), RunningNorm(3)
    for n in (1, 200, 3, 1000):
        x = torch.randn(n, 3, dtype=torch.float64)
        near.update(x)
        far.update(x + offset)
    torch.testing.assert_close(far(x + offset), near(x), rtol=0, atol=1e-5)
    assert far(x).dtype == torch.float32


def test_the_window_keeps_observations_as_they_came():
    window = Window(2, steps=1, num_envs=1, sizes=ONE, dtype=torch.float64)
    window.oldest().observation[:] = 1e9 + 0.125
    again = Window(2, steps=1, num_envs=1, sizes=ONE, dtype=torch.float64)
    again.load_state_dict(window.state_dict())
    assert again.sample(newest=1, others=0).observation.unique().tolist() == [1e9 + 0.125]


def test_an_evaluation_counts_the_first_episode_of_each_environment():
    returns, lengths, whole, each = evaluate(counters(), lambda x, mask: torch.zeros(2, 1, dtype=torch.int64), seed=0)
    assert returns.tolist() == [3.0, 3.0]
    assert lengths.tolist() == [3, 3]
    assert each.tolist() == [[3.0], [3.0]]
    assert whole.all()


def test_an_evaluation_says_which_episodes_it_cut_off(monkeypatch):
    monkeypatch.setattr(evaluation, "_MOST_STEPS", 12)
    fall = lambda x, mask: (torch.arange(4) % 2)[:, None] * (x[:, 2:3] + x[:, 3:4] > 0)  # noqa: E731  # 0, 2 push left only
    environments = Environments(make("CartPole-v1", 4))
    with pytest.warns(UserWarning, match="2 of 4 episodes had not ended after 12 steps and count with their return so"):
        returns, lengths, whole, _ = evaluate(environments, fall, seed=1)
    assert whole.tolist() == [True, False, True, False]
    assert (returns[~whole] == 12).all()
    assert (lengths[whole] < 12).all()
    # An episode that ends at the last step is whole.
    monkeypatch.setattr(evaluation, "_MOST_STEPS", 3)
    assert evaluate(counters(), lambda x, mask: torch.zeros(2, 1, dtype=torch.int64), seed=0).whole.all()


def test_an_evaluation_of_cart_poles_repeats_and_depends_on_the_choices():
    environments = Environments(make("CartPole-v1", 20))
    upright = lambda x, mask: (x[:, 2:3] + x[:, 3:4] > 0).long()  # noqa: E731  # push towards where the pole falls
    good, again = (evaluate(environments, upright, seed=1)[0] for _ in range(2))
    assert torch.equal(good, again)
    bad = evaluate(environments, lambda x, mask: torch.zeros(20, 1, dtype=torch.int64), seed=1)[0]
    assert bad.max() < 12
    assert good.min() > 100


def test_a_film_ends_with_the_episode():
    frames = record(
        Environments(make("CartPole-v1", 1, render_mode="rgb_array")), lambda x, mask: torch.zeros(1, 1).long(), 0
    )
    assert frames.shape[1:] == (400, 600, 3)
    assert 8 < len(frames) < 14
    assert (frames[0] != frames[-1]).any()
    with pytest.warns(UserWarning, match="the film ends after 5 pictures, before its episode does"):
        cut = record(
            Environments(make("CartPole-v1", 1, render_mode="rgb_array")),
            lambda x, mask: torch.zeros(1, 1).long(),
            0,
            most=5,
        )
    assert len(cut) == 5


def test_the_interquartile_mean_leaves_the_outer_quarters_out():
    middle, low, high = interquartile_mean(torch.tensor([-1000.0, 1.0, 2.0, 3.0, 4.0, 1000.0, 2.0, 3.0]))
    assert middle == 2.5
    assert low < middle < high
    assert interquartile_mean(torch.full((5,), 7.0)) == (7.0, 7.0, 7.0)


# Networks


def test_the_actors_padding_is_never_drawn():
    actor = Actor(4, (2, 3), hidden=(8,))
    logits = actor(torch.randn(7, 4))
    assert logits.shape == (7, 2, 3)
    assert torch.equal(logits.isinf(), torch.tensor([[False, False, True], [False] * 3]).expand(7, 2, 3))
    assert logits[logits.isfinite()].abs().max() < 0.5  # nearly uniform at first


@pytest.mark.parametrize("pairwise", [False, True])
def test_the_advantage_is_that_of_the_sum_over_factors_and_pairs(pairwise):
    critic = Advantage(4, (2, 3, 3), hidden=(8,), pairwise=pairwise)
    x = torch.randn(5, 4)
    h, w = critic(x)
    action = torch.stack([torch.randint(n, (5,)) for n in (2, 3, 3)], 1)
    a = torch.nn.functional.one_hot(action, 3).float()
    expected = torch.zeros(5)
    for b in range(5):
        expected[b] = sum(h[b, f, action[b, f]] for f in range(3))
        if pairwise:
            for p, (f, g) in enumerate([(0, 1), (0, 2), (1, 2)]):
                expected[b] += w[b, p, action[b, f], action[b, g]]
    torch.testing.assert_close(multilinear(a, h, w), expected)
    torch.testing.assert_close(multilinear(torch.stack([a, a]), h, w), torch.stack([expected, expected]))


def test_the_expectation_of_a_multilinear_function_is_its_value_at_the_probabilities():
    critic = Advantage(4, (3, 3, 3), hidden=(8,), pairwise=True).double()
    h, w = critic(torch.randn(4, dtype=torch.float64))
    logits = torch.randn(3, 3, dtype=torch.float64)
    exact = Enumeration().expectation(lambda z: multilinear(z, h, w), logits)
    torch.testing.assert_close(multilinear(logits.softmax(-1), h, w), exact, rtol=0, atol=1e-12)


def test_the_log_probability_of_an_action_is_the_sum_over_factors():
    logits = torch.randn(6, 2, 3)
    action = torch.randint(3, (6, 2))
    expected = [sum(logits[b, f].softmax(-1)[action[b, f]].log() for f in range(2)) for b in range(6)]
    torch.testing.assert_close(log_prob_of(logits, action), torch.stack(expected))
