import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from taugrad.errors import ConfigError
from taugrad.rl import joint, minatar
from taugrad.rl.bandit import FactoredBandit
from taugrad.rl.cartpoles import KCartPoles
from taugrad.rl.environments import Environments, make
from taugrad.rl.spaces import factors_of, observation_size, to_environment

ALL = {
    "cartpole": lambda n: make("CartPole-v1", n),
    "acrobot": lambda n: make("Acrobot-v1", n),
    "lunarlander": lambda n: make("LunarLander-v3", n),
    "k_cartpoles": lambda n: KCartPoles(n, poles=3),
    "bandit": lambda n: FactoredBandit(n, decisions=7),
    "minatar": lambda n: minatar.make("breakout", n),
    "foraging": lambda n: joint.make("lbforaging:Foraging-8x8-2p-3f-v3", n, time_limit=50),
}


def random_choices(environments: Environments) -> torch.Tensor:
    columns = [torch.randint(n, (environments.num_envs,)) for n in environments.factors]
    return torch.stack(columns, 1)


class Counter(gymnasium.Env):
    """Ends after 3 steps by itself or after 2 by time; it shows the step it is at, and 1 is its reward."""

    observation_space, action_space = Box(0, 10, (1,)), Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return np.array([0.0], dtype=np.float32), {}

    def step(self, action):
        assert action in (5, 6)
        self.at += 1
        return np.array([self.at], dtype=np.float32), 1.0, self.at == 3, False, {}


def counters(limit=None, **options):
    one = (lambda: TimeLimit(Counter(), limit)) if limit else Counter
    return Environments(SyncVectorEnv([one] * 2, **options))


@pytest.mark.parametrize("name", ALL)
def test_an_environment_gives_tensors_of_its_sizes_and_repeats_under_a_seed(name):
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        environments = Environments(ALL[name](4))
        x = environments.reset(seed=11)
        steps = [environments.step(random_choices(environments)) for _ in range(60)]
        environments.close()
        assert x.shape == (4, environments.observation_size)
        assert x.dtype == torch.float32
        for step in steps:
            assert step.observation.shape == x.shape
            assert step.observation.isfinite().all()
            assert step.reward.dtype == torch.float32
            assert {part.shape for part in step[1:]} == {(4,)}
            assert {part.dtype for part in step[2:]} == {torch.bool}
        seen.append([torch.cat([step.observation.flatten(), step.reward]) for step in steps])
    assert torch.equal(torch.stack(seen[0]), torch.stack(seen[1]))


@pytest.mark.parametrize("name", ALL)
def test_the_step_after_an_end_is_a_reset_and_only_that(name):
    environments = Environments(ALL[name](3))
    environments.reset(seed=0)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(120):
        step = environments.step(random_choices(environments))
        assert torch.equal(step.valid, ~ended)
        assert not any(part[ended].any() for part in (step.reward, step.terminated, step.truncated))
        ended = step.terminated | step.truncated
    environments.close()


def test_the_last_observation_of_an_episode_comes_with_its_end_and_the_first_of_the_next_after():
    environments = counters()
    choice = torch.zeros(2, 1, dtype=torch.int64)
    seen = [environments.reset(0)[0, 0].item()]
    rows = []
    for _ in range(5):
        step = environments.step(choice)
        seen.append(step.observation[0, 0].item())
        rows.append((step.terminated[0].item(), step.valid[0].item()))
    assert seen == [0, 1, 2, 3, 0, 1]
    assert rows == [(False, True), (False, True), (True, True), (False, False), (False, True)]


def test_a_time_limit_truncates():
    environments = counters(limit=2)
    environments.reset(0)
    steps = [environments.step(torch.ones(2, 1, dtype=torch.int64)) for _ in range(2)]
    assert steps[1].truncated.all()
    assert not steps[1].terminated.any()


def test_another_way_to_reset_is_refused():
    with pytest.raises(ConfigError, match=r"must reset on the next step, autoreset_mode is AutoresetMode\.SAME_STEP"):
        counters(autoreset_mode=AutoresetMode.SAME_STEP)


def test_spaces_that_a_policy_takes():
    assert factors_of(Discrete(3, start=-1)) == (3,)
    assert factors_of(MultiDiscrete([2, 5])) == (2, 5)
    assert observation_size(Box(0, 1, (2, 3))) == 6
    assert observation_size(MultiBinary((10, 10, 4))) == 400
    assert to_environment(torch.tensor([[0], [2]]), Discrete(3, start=-1)).tolist() == [-1, 1]
    assert to_environment(torch.tensor([[0, 1]]), MultiDiscrete([2, 3], start=[4, 0])).tolist() == [[4, 1]]


@pytest.mark.parametrize("space", [Box(0, 1, (2,)), MultiDiscrete([[2, 3], [4, 5]]), Dict({"a": Discrete(2)})])
def test_other_actions_are_refused_in_a_sentence(space):
    with pytest.raises(ConfigError, match="a policy's actions must be Discrete or a flat MultiDiscrete, the environ"):
        factors_of(space)


@pytest.mark.parametrize("space", [Discrete(3), Dict({"a": Box(0, 1, (2,))})])
def test_other_observations_are_refused_in_a_sentence(space):
    with pytest.raises(ConfigError, match="a policy's observations must be Box or MultiBinary, the environment's are"):
        observation_size(space)


def test_environments_that_do_not_exist_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"env.make.id=CartPoll-v1: "):
        make("CartPoll-v1", 1)
    with pytest.raises(ConfigError, match=r"env.make.id=no_such_package:Env-v0: "):
        make("no_such_package:Env-v0", 1)
    with pytest.raises(ConfigError, match=r"env.make.id=no_such_package:Env-v0: "):
        joint.make("no_such_package:Env-v0", 1)
    with pytest.raises(ConfigError, match=r"game must be one of asterix, .*, got chess"):
        minatar.make("chess", 1)
    with pytest.raises(ConfigError, match="agents must see a flat Box and choose from a Discrete each"):
        joint.make("CartPole-v1", 1)


# The environments of this package


def test_the_bandits_best_choices_are_those_of_going_through_all():
    bandit = FactoredBandit(1, factors=4, choices=3, seed=5)
    x = np.random.default_rng(0).standard_normal((20, 4))
    every = np.array(list(itertools.product(range(3), repeat=4)))
    best = np.array([bandit.rewards(np.repeat(row[None], len(every), 0), every).max() for row in x])
    np.testing.assert_allclose(bandit.rewards(x, bandit.best(x)), best, rtol=1e-12)


def test_the_bandit_gives_one_for_the_best_and_nothing_for_random_choices():
    # Of 200 x 100 decisions: the standard error of the mean is about 0.004 and 0.003; five of them fail once in 10^6.
    bandit = FactoredBandit(200)
    means = []
    for choose in (bandit.best, lambda x: np.random.default_rng(1).integers(6, size=(len(x), 8))):
        x, _ = bandit.reset(seed=0)
        rewards = []
        for _ in range(100):
            x, reward, *_ = bandit.step(choose(x))
            rewards.append(reward)
        means.append(np.mean(rewards))
    assert abs(means[0] - 1) < 0.02
    assert abs(means[1]) < 0.06


def test_one_cart_pole_of_k_is_gymnasiums():
    ours, theirs = KCartPoles(5, poles=1), gymnasium.make_vec("CartPole-v1", num_envs=5)
    seen = [env.reset(seed=3)[0] for env in (ours, theirs)]
    random = np.random.default_rng(0)
    for _ in range(300):
        np.testing.assert_array_equal(*seen)
        action = random.integers(2, size=5)
        a, b = ours.step(action[:, None]), theirs.step(action)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        seen = [a[0], b[0]]


def test_k_cart_poles_begin_anew_together_when_the_first_falls():
    poles = KCartPoles(4, poles=3)
    poles.reset(seed=0)
    ended = np.zeros(4, dtype=bool)
    ends = 0
    for _ in range(200):
        x, reward, terminated, truncated, _ = poles.step(np.random.default_rng(1).integers(2, size=(4, 3)))
        carts = x.reshape(4, 3, 4)
        assert (np.abs(carts[ended]) <= 0.05).all()  # all three of them
        np.testing.assert_array_equal(reward, np.where(ended, 0.0, 1.0))
        ended = terminated | truncated
        fallen = (np.abs(carts[:, :, 2]) > 12 * 2 * np.pi / 360) | (np.abs(carts[:, :, 0]) > 2.4)
        np.testing.assert_array_equal(terminated, fallen.any(1))
        ends += ended.sum()
    assert ends > 10


def test_minatars_choices_are_those_of_the_game_and_its_episodes_time_out():
    game = minatar.MinAtar("breakout")
    x, _ = game.reset(seed=1)
    assert x.shape == (10, 10, 4)
    assert set(np.unique(x)) == {0, 1}
    assert game.action_space.n == 3
    assert minatar.make("freeway", 2).envs[0].get_wrapper_attr("_max_episode_steps") == 5000


def test_agents_act_as_one():
    environments = Environments(joint.make("lbforaging:Foraging-8x8-2p-3f-v3", 2, time_limit=50))
    assert environments.factors == (6, 6)
    assert environments.observation_size == 30
    environments.reset(0)
    steps = [environments.step(random_choices(environments)) for _ in range(50)]
    assert steps[-1].truncated.any()
    environments.close()
