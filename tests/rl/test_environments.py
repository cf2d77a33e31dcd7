import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from helpers.environments import Counter, counters, from_zero
from hypothesis import given, settings
from hypothesis import strategies as st

from taugrad.errors import ConfigError, DataError
from taugrad.rl.environments import Environments, build, make
from taugrad.rl.envs import agents, minatar
from taugrad.rl.envs.bandit import FactoredBandit
from taugrad.rl.envs.cartpoles import KCartPoles
from taugrad.rl.rollouts import Collector, Window
from taugrad.rl.spaces import Sizes, factors_of, flat_space, observation_dtype

ALL = {
    "cartpole": lambda n: make("CartPole-v1", n),
    "acrobot": lambda n: make("Acrobot-v1", n),
    "lunarlander": lambda n: make("LunarLander-v3", n),
    "k_cartpoles": lambda n: KCartPoles(n, poles=3),
    "bandit": lambda n: FactoredBandit(n, decisions=7),
    "minatar": lambda n: minatar.make("breakout", n),
    "foraging": lambda n: agents.make("lbforaging:Foraging-8x8-2p-3f-v3", n, time_limit=50),
}


def random_choices(environments: Environments) -> torch.Tensor:
    columns = [torch.randint(n, (environments.num_envs,)) for n in environments.sizes.factors]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", ALL)
def test_an_environment_gives_tensors_of_its_sizes_and_repeats_under_a_seed(name):
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        environments = Environments(ALL[name](4))
        x = environments.reset(seed=11).observation
        steps = [environments.step(random_choices(environments)) for _ in range(60)]
        environments.close()
        assert x.shape == (4, environments.sizes.observation)
        assert x.dtype == torch.float32
        for step in steps:
            assert step.seen.observation.shape == x.shape
            assert step.seen.observation.isfinite().all()
            assert step.reward.dtype == torch.float32
            assert step.reward.shape == (4, len(environments.sizes.parts))
            assert {part.shape for part in step[2:]} == {(4,)}
            assert {part.dtype for part in step[2:]} == {torch.bool}
        seen.append([torch.cat([step.seen.observation.flatten(), step.reward.flatten()]) for step in steps])
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
    seen = [environments.reset(0).observation[0, 0].item()]
    rows = []
    for _ in range(5):
        step = environments.step(choice)
        seen.append(step.seen.observation[0, 0].item())
        rows.append((step.terminated[0].item(), step.valid[0].item()))
    assert seen == [0, 1, 2, 3, 0, 1]
    assert rows == [(False, True), (False, True), (True, True), (False, False), (False, True)]


def test_a_time_limit_truncates():
    environments = counters(limit=2)
    environments.reset(0)
    steps = [environments.step(torch.ones(2, 1, dtype=torch.int64)) for _ in range(2)]
    assert steps[1].truncated.all()
    assert not steps[1].terminated.any()


class Told(VectorEnv):
    """Returns what it is told to."""

    single_observation_space, single_action_space = Box(-np.inf, np.inf, (3,)), Discrete(2)

    def __init__(self, mode=AutoresetMode.NEXT_STEP, num_envs=2, observation=None, **step):
        self.metadata = {"autoreset_mode": mode} if mode else {}
        self.num_envs = num_envs
        self.observation = np.zeros((num_envs, 3), np.float32) if observation is None else observation
        nothing = np.zeros(num_envs)
        self.told = {"reward": nothing, "terminated": nothing > 0, "truncated": nothing > 0, "info": {}} | step

    def reset(self, *, seed=None, options=None):
        if isinstance(self.observation, Exception):
            raise self.observation
        return self.observation, {}

    def step(self, actions):
        if isinstance(self.told["reward"], Exception):
            raise self.told["reward"]
        return self.observation, *self.told.values()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, "NextStep", "NEXT_STEP", "next_step", "Next-Step"])
def test_the_way_to_reset_is_named_by_the_enum_or_its_text(mode):
    assert Environments(Told(mode)).num_envs == 2


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, "SameStep", "SAME_STEP", "Disabled"])
def test_another_way_to_reset_is_refused(mode):
    with pytest.raises(ConfigError, match=rf"must reset on the next step, autoreset_mode is {mode}"):
        Environments(Told(mode))


def test_an_environment_that_does_not_say_how_it_resets_is_refused():
    with pytest.raises(ConfigError, match=r"and say so: metadata\['autoreset_mode'\] is missing, it must be Autoreset"):
        Environments(Told(None))


def test_an_environment_that_resets_in_another_way_than_it_says_is_refused():
    choice = torch.zeros(2, 1, dtype=torch.int64)
    again = Environments(Told(terminated=[True, False]))
    again.step(choice)
    with pytest.raises(DataError, match="does not reset on the next step, as its autoreset_mode says"):
        again.step(choice)
    for name in ("final_obs", "final_observation"):
        with pytest.raises(DataError, match="does not reset on the next step, as its autoreset_mode says"):
            Environments(Told(terminated=[True, False], info={name: None})).step(choice)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x[:, None],
        lambda x: x.tolist(),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(int),
        lambda x: x.astype(bool),
        lambda x: x.astype(object),
        torch.from_numpy,
    ],
    ids=["column", "list", "float64", "float16", "int", "bool", "object", "tensor"],
)
def test_rewards_and_ends_of_any_shape_and_type_are_those_of_each_environment(form):
    one, none = np.array([1.0, 0.0, 1.0], np.float32), np.zeros(3, np.float32)
    told = Told(num_envs=3, reward=form(one), terminated=form(none), truncated=form(one), info=None)
    step = Environments(told).step(torch.zeros(3, 1, dtype=torch.int64))
    assert torch.equal(step.reward[:, 0], torch.tensor([1.0, 0.0, 1.0]))
    assert step.terminated.tolist() == [False] * 3
    assert step.truncated.tolist() == [True, False, True]
    assert {part.dtype for part in step[2:]} == {torch.bool}


def test_a_single_environment_may_return_bare_numbers():
    told = Told(num_envs=1, observation=[1.0, 2.0, 3.0], reward=2.0, terminated=0, truncated=True)
    step = Environments(told).step(torch.zeros(1, 1, dtype=torch.int64))
    assert [part.tolist() for part in (step.seen.observation, *step[1:])] == [
        [[1.0, 2.0, 3.0]],
        [[2.0]],
        [False],
        [True],
        [True],
    ]


def test_what_was_returned_stays_when_the_environment_writes_over_it():
    told = Told(reward=np.ones(2, np.float32), terminated=np.zeros(2, bool))
    step = Environments(told).step(torch.zeros(2, 1, dtype=torch.int64))
    told.observation += 1
    told.told["reward"] += 1
    told.told["terminated"] |= True
    assert not step.seen.observation.any()
    assert step.reward[:, 0].tolist() == [1, 1]
    assert not step.terminated.any()


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ({"reward": np.zeros((2, 2))}, r"must return a reward for each of its 2, got shape \(2, 2\)"),
        ({"reward": 0.0}, r"must return a reward for each of its 2, got shape \(\)"),
        ({"reward": [None, 1.0]}, "returned a reward of None"),
        ({"reward": ["much", "more"]}, "must return a reward of numbers: could not convert string"),
        ({"reward": [1.0, -np.inf]}, "returned a reward of -inf"),
        ({"reward": [1.0, 1e39]}, r"returned a reward of 1e\+39"),  # inf in float32
        ({"terminated": [False]}, r"must return a termination for each of its 2, got shape \(1,\)"),
        ({"truncated": [[False], []]}, "must return a truncation of numbers: setting an array element"),
        ({"observation": np.zeros((3, 2))}, r"must return observations of shape \(2, 3\), got \(3, 2\)"),
        ({"observation": np.zeros((2, 1))}, r"must return observations of shape \(2, 3\), got \(2, 1\)"),
        ({"observation": {"a": 1}}, "must return an observation of numbers: "),
        ({"observation": [[0, 0, 0], [0, 0, np.nan]]}, "returned an observation of nan"),
        ({"observation": ValueError("a key is lost")}, "the environment's reset raised ValueError: a key is lost"),
        ({"reward": IndexError("a wall")}, "the environment's step raised IndexError: a wall .debug=true shows where"),
    ],
)
def test_what_an_environment_should_not_return_is_refused_in_a_sentence(returned, sentence):
    rollout = Window(1, 1, 2, Sizes((3,), (2,))).oldest()
    act = lambda x, mask: (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2))  # noqa: E731
    with pytest.raises(DataError, match=sentence):
        Collector(Environments(Told(**returned)), seed=0).fill(rollout, act)


def fail(num_envs):
    raise OSError("no display")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda num_envs: gymnasium.make("CartPole-v1"), "must return a gymnasium.vector.VectorEnv, got TimeLimit"),
        (lambda num_envs: Told(), "env.make must return num_envs=5 environments, got 2"),
        (fail, "env.make raised OSError: no display"),
        (
            lambda num_envs: SyncVectorEnv([Counter, lambda: gymnasium.make("CartPole-v1")]),
            "env.make raised RuntimeError: SyncVectorEnv.*observation spaces are not equivalent",
        ),
    ],
    ids=["single", "another number", "an error", "different spaces"],
)
def test_a_function_that_makes_no_environments_of_one_kind_is_refused(function, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(function, 5)


# Actions and observations


class Echo(gymnasium.Env):
    """Keeps the actions that it gets."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or Box(0, 1, (1,))
        self.got = []

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} of {action.dtype}"
        self.got.append(action)
        return self.observation_space.sample(), 0.0, False, False, {}


starts, dtypes = st.integers(-20, 20), st.sampled_from([np.int64, np.int32, np.int8])
discrete = st.builds(lambda n, start, dtype: Discrete(n, start=start, dtype=dtype), st.integers(1, 6), starts, dtypes)
binary = st.sampled_from([(1,), (3,), (2, 2)]).map(MultiBinary)


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    n, start = (draw(st.lists(x, min_size=4, max_size=4))[: math.prod(shape)] for x in (st.integers(1, 6), starts))
    return MultiDiscrete(np.reshape(n, shape), start=np.reshape(start, shape), dtype=draw(dtypes))


flat = st.one_of(discrete, arrays(), binary)
nested = st.recursive(flat, lambda part: st.lists(part, min_size=1, max_size=3).map(Tuple), max_leaves=4)
repeatable = settings(derandomize=True, max_examples=30, deadline=None)


def choose_all(environments, echoes):
    choices = [random_choices(environments) for _ in range(6)]
    environments.reset(0)
    for choice in choices:
        environments.step(choice)
    return [[c[e].tolist() for c in choices] for e in range(len(echoes))]


@repeatable
@given(nested)
def test_every_choice_reaches_the_environment_as_the_action_it_stands_for(space):
    echoes = [Echo(space) for _ in range(2)]
    environments = Environments(SyncVectorEnv([lambda e=e: e for e in echoes]))
    for echo, chosen in zip(echoes, choose_all(environments, echoes), strict=True):
        assert [from_zero(action, space) for action in echo.got] == chosen


@repeatable
@given(st.lists(discrete, min_size=1, max_size=4))
def test_every_agents_choice_reaches_it_as_the_action_it_stands_for(spaces):
    seen = Tuple([Box(0, 1, (2,), np.float64)] * len(spaces))
    echoes = [Echo(Tuple(spaces), seen) for _ in range(2)]
    environments = Environments(SyncVectorEnv([lambda e=e: agents.Joint(e) for e in echoes]))
    assert environments.observation_dtype == torch.float64  # as their own
    for echo, chosen in zip(echoes, choose_all(environments, echoes), strict=True):
        assert [from_zero(action, Tuple(spaces)) for action in echo.got] == chosen


def test_spaces_that_a_policy_takes():
    assert factors_of(Discrete(3, start=-1)) == (3,)
    assert factors_of(MultiDiscrete([2, 5])) == (2, 5)
    assert factors_of(MultiDiscrete([[2, 3], [4, 5]])) == (2, 3, 4, 5)
    assert factors_of(Tuple([Discrete(2), Tuple([MultiBinary(2), Discrete(3)])])) == (2, 2, 2, 3)
    assert flat_space(Box(0, 1, (2, 3))).shape == (2, 3)
    assert flat_space(MultiBinary((10, 10, 4))).shape == (10, 10, 4)
    assert flat_space(Dict({"b": Discrete(3), "a": Tuple([MultiDiscrete([2, 4]), Box(0, 1, (2, 2))])})).shape == (13,)


@pytest.mark.parametrize(
    "space", [Box(0, 1, (2,)), Dict({"a": Discrete(2)}), Tuple([Discrete(2), Box(0, 1, (2,))]), MultiDiscrete([])]
)
def test_other_actions_are_refused_in_a_sentence(space):
    with pytest.raises(ConfigError, match="a policy's actions must be Discrete, MultiDiscrete, MultiBinary or a Tuple"):
        factors_of(space)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1], np.int8),
        ([3, 255], np.uint8),
        ([-32_767, 2], np.int16),
        ([0.1, 60_000], np.float16),
        ([0.1, 1e30], np.float32),
        ([2**24 + 1, -(2**31)], np.int32),
        ([2**53 - 1, 1], np.int64),
        ([1e9 + 0.1, 0.1], np.float64),
    ],
    ids=str,
)
def test_every_observation_keeps_all_its_digits(values, dtype):
    values = np.array([values], dtype)
    space = Box(values.min(), values.max(), values.shape, dtype)
    environment = Echo(Discrete(2), space)
    environment.reset = lambda **_: (values, {})
    x = Environments(SyncVectorEnv([lambda: environment])).reset(0).observation
    assert x.dtype == observation_dtype(space)
    assert x[0].tolist() == values[0].tolist()


@pytest.mark.parametrize(
    "space",
    [
        *(Sequence(Discrete(3)), Graph(Box(0, 1, (2,)), None), Text(5), OneOf([Discrete(2), Discrete(3)])),
        *(Dict({"a": Sequence(Discrete(2))}), Dict({"seen": Box(0, 1, (2,)), "said": Text(5)}), Tuple([Dict()])),
        *(Box(0, 1, (0,)), Dict(), Tuple([])),
    ],
)
def test_other_observations_are_refused_in_a_sentence(space):
    with pytest.raises(
        ConfigError, match="a policy's observations must be Box, MultiBinary, Discrete, MultiDiscrete, or a Dict"
    ):
        flat_space(space)


def test_a_dict_of_one_picture_is_the_picture():
    picture = Box(0, 255, (12, 10, 3), np.uint8)
    environment = Echo(Discrete(2), Dict(image=picture))
    seen = picture.sample()
    environment.reset = lambda **_: ({"image": seen}, {})
    environments = Environments(SyncVectorEnv([lambda: environment] * 2))
    assert (environments.sizes.shape, environments.sizes.unit) == ((12, 10, 3), 255)
    assert environments.reset(0).observation.view(2, 12, 10, 3)[1].tolist() == seen.tolist()


def test_environments_that_do_not_exist_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"env.make.id=CartPoll-v1: "):
        make("CartPoll-v1", 1)
    with pytest.raises(ConfigError, match=r"env.make.id=no_such_package:Env-v0: "):
        make("no_such_package:Env-v0", 1)
    with pytest.raises(ConfigError, match=r"env.make.id=no_such_package:Env-v0: "):
        agents.make("no_such_package:Env-v0", 1)
    with pytest.raises(ConfigError, match=r"game must be one of asterix, .*, got chess"):
        minatar.make("chess", 1)
    with pytest.raises(ConfigError, match="must have a Tuple of spaces, one for each, got"):
        agents.make("CartPole-v1", 1)


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


def test_a_picture_of_minatar_has_a_colour_for_each_plane():
    environments = Environments(minatar.make("breakout", 1, render_mode="rgb_array"))
    environments.reset(seed=0)
    for _ in range(3):
        planes = environments.step(torch.zeros(1, 1, dtype=torch.int64)).seen.observation.view(10, 10, 4)
    picture = environments.picture()
    assert picture.shape == (160, 160, 3)
    cells = picture.reshape(10, 16, 10, 16, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    last = (planes * torch.arange(1, 5)).amax(-1).int()
    pairs = {(tuple(cells[i, 0, j, 0].tolist()), last[i, j].item()) for i in range(10) for j in range(10)}
    colours, things = zip(*pairs, strict=True)
    assert sorted(things) == [0, 1, 2, 3, 4]  # nothing, the paddle, the ball, its trail, bricks
    assert len(set(colours)) == 5
    assert ((0, 0, 0), 0) in pairs


def test_agents_act_as_one():
    environments = Environments(agents.make("lbforaging:Foraging-8x8-2p-3f-v3", 2, time_limit=50))
    assert environments.sizes.factors == (6, 6)
    assert environments.sizes.observation == 30
    environments.reset(0)
    steps = [environments.step(random_choices(environments)) for _ in range(50)]
    assert steps[-1].truncated.any()
    environments.close()
