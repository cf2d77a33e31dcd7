"""Action masks: where they come from, what is refused, and that a forbidden action is as good as none."""

import math
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatten
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FrameStackObservation
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from helpers.cases import each
from helpers.environments import from_zero
from helpers.estimators import EVERY

from taugrad.errors import ConfigError, DataError
from taugrad.estimators import Enumeration
from taugrad.ops.categorical import entropy, kl
from taugrad.rl.actor import Actor, Policy, log_prob_of
from taugrad.rl.algorithm import Clock
from taugrad.rl.environments import Environments
from taugrad.rl.evaluation import evaluate, record
from taugrad.rl.maddpg import MADDPG
from taugrad.rl.mappo import MAPPO
from taugrad.rl.masks import KEY, allowed, to_mask
from taugrad.rl.multilinear import MultilinearActorCritic, multilinear
from taugrad.rl.ppo import PPO
from taugrad.rl.rollouts import Collector, Window
from taugrad.rl.spaces import factors_of


class Game(gymnasium.Env):
    """Forbids some choices at random in every step, and every one in an episode's last; it refuses a forbidden one.

    It gives the mask by `source`, as `form` makes it of a list of a mask for each factor. Ends after 5 steps.
    """

    def __init__(self, source="method", space=None, form=np.concatenate, seed=0, joint=False):
        self.action_space = Discrete(3) if space is None else space
        self.source, self.form, self.joint = source, form, joint
        self.factors = factors_of(self.action_space)
        self.random = np.random.default_rng(seed)
        self.observation_space = Box(0, 9, (2,))
        self.at = 0
        if source == "dict":
            self._draw()
            self.observation_space = Dict(seen=self.observation_space, action_mask=space_of(self.mask()))
        if source == "method":
            self.action_masks = self.mask

    def _draw(self):
        shape = [math.prod(self.factors)] if self.joint else self.factors
        self.masks = []
        for n in shape:
            mask = self.random.integers(2, size=n)
            mask[self.random.integers(n)] = 1
            self.masks.append(mask * (self.at < 5))

    def mask(self):
        return self.form(self.masks)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        self._draw()
        return self._seen(), self._info()

    def step(self, action):
        index = from_zero(action, self.action_space)
        if self.joint:
            index = [np.ravel_multi_index(index, self.factors)]
        assert all(mask[i] for mask, i in zip(self.masks, index, strict=True)), f"{index} of {self.masks}"
        self.at += 1
        self._draw()
        return self._seen(), 1.0, self.at == 5, False, self._info()

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)

    def _seen(self):
        x = np.array([self.at, 1], np.float32)
        return {KEY: self.mask(), "seen": x} if self.source == "dict" else x

    def _info(self):
        return {KEY: self.mask()} if self.source == "info" else {}


def space_of(mask):
    if isinstance(mask, tuple):
        return Tuple([space_of(part) for part in mask])
    return Box(0, 1, np.shape(mask), np.asarray(mask).dtype)


class Vector(VectorEnv):
    """A vector of games of one's own, with the method on the vector, which writes over the masks that it gave."""

    def __init__(self, games):
        self.inner = SyncVectorEnv(games)
        self.metadata, self.num_envs = self.inner.metadata, self.inner.num_envs
        self.single_observation_space = self.inner.single_observation_space
        self.single_action_space = self.inner.single_action_space
        self.memory = None

    def reset(self, *, seed=None, options=None):
        return self.inner.reset(seed=seed)

    def step(self, actions):
        if self.memory is not None:
            self.memory[:] = 7
        return self.inner.step(actions)

    def action_masks(self):
        self.memory = np.stack([game.mask() for game in self.inner.envs])
        return self.memory


def flat(dtype):
    return lambda masks: np.concatenate(masks).astype(dtype)


PAIR, SQUARE = MultiDiscrete([2, 3], start=[4, -1]), MultiDiscrete([[2, 3], [2, 4]])
MIXED = Tuple([Discrete(2), MultiDiscrete([2, 3]), MultiBinary(1)])
FORMS = [  # space, form, whether it is of joint actions
    (Discrete(3, start=5), flat(bool), False),
    (Discrete(3, start=5), flat(np.float32), False),
    (PAIR, flat(np.int8), False),
    (PAIR, tuple, False),
    (MultiDiscrete([2, 2]), tuple, False),  # as many factors as environments, and as many choices
    (MultiDiscrete([3, 3]), np.stack, False),
    (SQUARE, flat(np.float64), False),
    (SQUARE, lambda m: ((m[0], m[1]), (m[2], m[3])), False),
    (MultiBinary(2), flat(np.int8), False),
    (MIXED, flat(np.uint8), False),
    (MIXED, lambda m: (m[0], (m[1], m[2]), (m[3],)), False),
    (PAIR, lambda m: m[0].reshape(2, 3), True),
    (MultiBinary(3), lambda m: m[0].reshape(2, 2, 2), True),
    (MIXED, lambda m: m[0].reshape(2, 2, 3, 2), True),
]
SOURCES = {
    "dict": lambda games: SyncVectorEnv(games),
    "method": lambda games: SyncVectorEnv(games),
    "info": lambda games: SyncVectorEnv(games),
}


def play(env, games, steps=13):
    """Fill a rollout by sampling, and hold its masks against the games' own; a forbidden action is an error."""
    environments = Environments(env)
    F, K = len(environments.sizes.factors), max(environments.sizes.factors)
    policy = Policy(Actor(2, environments.sizes.factors, [4]), 2, False)
    rollout = Window(1, steps, len(games), environments.sizes).oldest()
    collector, expected = Collector(environments, seed=0), []

    def act(x, mask):
        expected.append([padded(game, F, K) for game in games])
        return policy.act(x, mask)

    collector.fill(rollout, act)
    assert torch.equal(rollout.mask[:-1], torch.tensor(np.array(expected)))
    assert (~rollout.valid).sum() == 2 * len(games)  # episodes ended, so that the masks that forbid all were seen
    assert 0.2 < rollout.mask.double().mean() < 1
    return environments


def padded(game, F, K):
    mask = np.zeros((F, K), bool)
    for f, part in enumerate(game.masks):
        mask[f, : len(part)] = part if game.at < 5 else 1
    return mask


@each("form, source", [(form, source) for form in FORMS for source in SOURCES])
def test_a_mask_of_every_form_and_from_every_source_reaches_the_policy_and_its_choices_the_environment(form, source):
    space, make, joint = form
    games = [Game(source, space, make, seed, joint) for seed in range(2)]
    environments = play(SOURCES[source]([lambda g=g: g for g in games]), games)
    factors = factors_of(space)
    assert environments.masked
    assert environments.sizes.factors == ((math.prod(factors),) if joint else factors)
    assert environments.sizes.observation == 2  # without the mask


@each("make", [Vector, lambda games: RecordEpisodeStatistics(SyncVectorEnv(games))])
def test_a_vector_may_have_the_method_itself_or_within_a_wrapper(make):
    games = [Game(seed=seed) for seed in range(2)]
    play(make([lambda g=g: g for g in games]), games)
    game = Game(seed=3)
    play(Vector([lambda: game]), [game])


def test_an_evaluation_and_a_film_play_by_the_masks():
    policy = Policy(Actor(2, (2, 3), [4]), 2, False)
    for choose in (policy.greedy, lambda x, mask: policy.act(x, mask)[0]):
        environments = Environments(SyncVectorEnv([lambda s=s: Game("info", PAIR, seed=s) for s in range(8)]))
        episodes = evaluate(environments, choose, 0)  # a game refuses what it forbids
        assert episodes.lengths.tolist() == [5] * 8
        assert len(record(environments, choose, 0)) == 6


@each("source", [*SOURCES])
def test_environments_in_other_processes_give_the_same_masks(source):
    seen = []
    for vector in (SyncVectorEnv, AsyncVectorEnv):
        environments = Environments(vector([lambda s=s: Game(source, PAIR, tuple, s) for s in range(2)]))
        policy = Policy(Actor(2, (2, 3), [4]), 2, False)
        rollout = Window(1, 8, 2, environments.sizes).oldest()
        Collector(environments, seed=0).fill(rollout, lambda x, m, p=policy: (p.greedy(x, m), torch.zeros(2)))
        seen.append(rollout.mask[0])  # the first, of the same state
        environments.close()
    assert torch.equal(*seen)


# What is refused


class Told(VectorEnv):
    """Two environments of two factors that give the masks that they are told to, first one and then the other."""

    single_observation_space, single_action_space = Box(0, 1, (1,)), MultiDiscrete([2, 3])
    num_envs = 2

    def __init__(self, first, then=None, ended=(False, False)):
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.now, self.then, self.ended = first, first if then is None else then, np.array(ended)

    def action_masks(self):
        if isinstance(self.now, Exception):
            raise self.now
        return None if isinstance(self.now, str) else self.now

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1)), {}

    def step(self, actions):
        self.now = self.then
        return np.zeros((2, 1)), np.zeros(2), self.ended, np.zeros(2, bool), {}


def told(first, then=None, ended=(False, False)):
    environments = Environments(Told(first, then, ended))
    environments.reset(0)
    return environments.step(torch.zeros(2, 2, dtype=torch.int64)).seen.mask


FREE = [np.ones(5)] * 2
NONE, HALF = [np.zeros(5)] * 2, [np.ones(5), np.array([1, 1, 0, 0, 0])]
REFUSED = [
    ([np.ones(4)] * 2, r"action_mask must have shape \(5,\), a mask for each of 2 factors, got \(4,\)"),
    ([np.ones(5), np.ones(4)], r"must have shape \(5,\), a mask for each of 2 factors, got \(4,\)"),
    ([(np.ones(2), np.ones(2))] * 2, "must have shape .*, got a tuple of 4"),
    ([(None, np.ones(3))] * 2, "action_mask must have numbers for each of its parts, got None for one"),
    (np.ones((2, 4, 5)), r"must have shape .*, got \(4, 5\)"),
    (np.ones((3, 5)), "must give an action_mask for each of its 2 copies, got 3"),
    ([np.ones(5)], "must give an action_mask for each of its 2 copies, got 1"),
    ({"move": np.ones(5)}, "must give an action_mask for each of its 2 copies, got dict"),
    (1.0, "must give an action_mask for each of its 2 copies, got float"),
    ([np.ones(5), None], "gave no action_mask in a step, but gives them: one is needed in every step"),
    (HALF, "action_mask forbids every choice of factor 1, in environment 1"),
    ([np.array([1, 2, 1, 1, 1], np.int8)] * 2, "action_mask must hold 0 and 1, got 2"),
    ([np.array([1, -1, 1, 1, 1])] * 2, "action_mask must hold 0 and 1, got -1"),
    ([np.array([1, np.nan, 1, 1, 1])] * 2, "action_mask must hold 0 and 1, got nan"),
    ([np.array([0, -np.inf, 0, 0, 0])] * 2, "action_mask must hold 0 and 1, got -inf"),
    ([["yes", "no", "yes", "yes", "yes"]] * 2, "action_mask must hold 0 and 1, got yes"),
    ("nothing", "gave no action_mask in a step, but gives them: one is needed in every step"),
    (KeyError("board"), "the environment's action_mask raised KeyError: 'board'"),
]


@each("masks, sentence", REFUSED)
def test_what_is_no_mask_is_refused_in_a_sentence_at_once_or_when_it_comes(masks, sentence):
    if not isinstance(masks, str):
        with pytest.raises(DataError, match=sentence):
            Environments(Told(masks)).reset(0)
    with pytest.raises(DataError, match=sentence):
        told(FREE, masks)


@each("last", [NONE, [None, None], [np.zeros(0), np.full(5, np.nan)], np.full((2, 5), np.nan)])
def test_the_last_observation_of_an_episode_has_nothing_to_choose_and_any_mask(last):
    assert torch.equal(told(FREE, last, ended=(True, True)), allowed((2, 3)).expand(2, 2, 3))


def test_a_mask_after_a_time_out_counts_as_the_next_choices_value_needs_it():
    last = [np.array([0, 1, 0, 1, 1]), np.array([1, 0, 0, 0, 0])]
    expected = [[[0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 1]]]  # the second factor of the second has nothing
    assert told(FREE, last, ended=(True, True)).int().tolist() == expected
    assert told(FREE, np.stack(last), ended=(True, True)).int().tolist() == expected


def test_the_agent_is_named_that_has_nothing_to_choose():
    masks, owners = np.array([[1, 1, 0, 0, 0, 1]]), ("scout", "pilot", "pilot")
    for mask, what in (
        (masks, "every choice of factor 0 of agent pilot"),
        (masks * [0, 0, 1, 1, 1, 1], "every action of agent scout"),
    ):
        with pytest.raises(DataError, match=f"action_mask forbids {what}, in environment 0"):
            to_mask(mask, (2, 3, 1), np.array([False]), owners)


def made(source, change):
    """A game that changes in its third step."""

    class Changed(Game):
        def mask(self):
            return change(self, super().mask())

    return SyncVectorEnv([partial(Changed, source, seed=s) for s in range(2)])


def test_a_mask_that_is_missing_in_a_later_step_is_refused():
    class Forgets(Game):
        def _info(self):
            return {} if self.at == forgets else super()._info()

    for forgets, sentence in ((2, "gave no action_mask in a step"), (0, r"gives info\['action_mask'\] in a step, but")):
        other = Game if forgets else Forgets  # one of two that forgets later is enough
        environments = Environments(SyncVectorEnv([lambda: Forgets("info"), lambda other=other: other("info")]))
        policy = lambda x, m: (m.float().argmax(-1), torch.zeros(2))  # noqa: E731
        collector, rollout = Collector(environments, 0), Window(1, 16, 2, environments.sizes).oldest()
        with pytest.raises(DataError, match=sentence):
            collector.fill(rollout, policy)


def test_spaces_and_environments_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="all environments must have the method action_masks, or none: 1 of 2 do"):
        Environments(SyncVectorEnv([Game, lambda: Game("none")]))
    assert not Environments(SyncVectorEnv([lambda: Game("none")])).masked
    game = Game("dict")
    sentences = "observations must hold more than the action_mask", "action_mask must stand at the top of a Dict"
    for space, sentence in zip((Dict({KEY: MultiBinary(3)}), Dict(all=game.observation_space)), sentences, strict=True):
        game.observation_space = space
        with pytest.raises(ConfigError, match=f"{sentence}.*, the environment's are Dict"):
            Environments(SyncVectorEnv([lambda: game]))
    stacked = SyncVectorEnv([lambda: FrameStackObservation(Game("dict"), 4)])
    with pytest.raises(DataError, match=r"must have shape \(3,\), got \(4, 3\)"):
        Environments(stacked).reset(0)


@each("order", [("z", KEY, "a"), (KEY, "a", "z"), ("a", "z", KEY)])
def test_an_observation_without_its_mask_is_flattened_as_gymnasium_flattens_it(order):
    parts = {"z": Discrete(3), KEY: MultiBinary(3), "a": Box(0, 9, (2,), np.float64)}
    rest = Dict([(name, parts[name]) for name in order if name != KEY])
    game = Game()
    game.observation_space = Dict([(name, parts[name]) for name in order])
    seen = {"a": np.array([5.5, 6]), KEY: np.array([1, 0, 1], np.int8), "z": 1}
    game.reset = lambda **_: (seen, {})
    x = Environments(SyncVectorEnv([lambda: game])).reset(0).observation[0]
    assert x.tolist() == flatten(rest, {name: seen[name] for name in order if name != KEY}).tolist()


# A forbidden action is as good as none


def some_mask(*shape, seed=0):
    """A mask that allows some choices, and more than one of the first factor."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(*shape, generator=random) < 0.5
    mask[..., 0] = True
    mask[..., 0, 1] = True
    return mask


def test_a_forbidden_choice_is_never_made_and_its_probability_is_exactly_zero():
    policy, mask = Policy(Actor(2, (3, 4), [4]), 2, True), some_mask(500, 2, 4) & allowed((3, 4))
    with torch.no_grad():
        policy.actor.net[-1].weight.mul_(1e4)  # very sure, and of forbidden ones too
        x = torch.randn(500, 2)
        logits = policy.actor(policy.normalized(x), mask)
        action, log_mu = policy.act(x, mask)
        assert mask.gather(-1, action[..., None]).all()
        assert mask.gather(-1, policy.greedy(x, mask)[..., None]).all()
        assert not mask.gather(-1, policy.greedy(x)[..., None]).all()
        assert (logits.softmax(-1)[~mask] == 0).all()
        assert torch.equal(log_mu, log_prob_of(logits, action))


@pytest.mark.parametrize("estimator", EVERY, ids=lambda estimator: type(estimator).__name__)
def test_no_estimator_gives_a_forbidden_choice_a_gradient_or_an_influence(estimator):
    mask = some_mask(6, 2, 4)
    actor = Actor(3, (4, 4), [5])
    x, h, w = torch.randn(6, 3), torch.randn(6, 2, 4), torch.randn(6, 1, 4, 4)
    gradients = []
    for h_now in (h, h.masked_fill(~mask, 1e3)):  # what forbidden choices are worth changes nothing
        torch.manual_seed(0)
        raw = actor.net(x).unflatten(-1, (2, 4)).detach().requires_grad_()
        logits = raw.masked_fill(~mask, -torch.inf)
        estimator.expectation(lambda z, h=h_now: multilinear(z, h, w), logits, 0.7).sum().backward()
        assert (raw.grad[~mask] == 0).all()
        assert raw.grad.isfinite().all()
        assert (raw.grad[mask] != 0).any()
        gradients.append(raw.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    # and through the actor: the rows of its last layer that no observation allows stay as they are
    always = mask[:1].expand(6, 2, 4)
    estimator.expectation(lambda z: multilinear(z, h, w), actor(x, always), 0.7).sum().backward()
    rows = actor.net[-1].weight.grad
    assert (rows[~mask[0].flatten()] == 0).all()
    assert (rows[mask[0].flatten()] != 0).any()


def test_log_probability_entropy_kl_and_the_critics_expectation_are_those_of_the_allowed_choices_alone():
    keep = ([0, 2], [0, 1, 3])
    raw, other, h, w = (torch.randn(*s, dtype=torch.float64) for s in ((2, 4), (2, 4), (2, 4), (1, 4, 4)))
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    logits, old = raw.masked_fill(~mask, -torch.inf), other.masked_fill(~mask, -torch.inf)
    few, few_old = ([part[f][keep[f]] for f in range(2)] for part in (raw, other))
    p = [part.softmax(-1) for part in few]
    H = sum(-(q * q.log()).sum() for q in p)
    KL = sum((q.softmax(-1) * (q.log_softmax(-1) - r.log_softmax(-1))).sum() for q, r in zip(few_old, few, strict=True))
    A = sum(p[f] @ h[f][keep[f]] for f in range(2)) + p[0] @ w[0][keep[0]][:, keep[1]] @ p[1]
    torch.testing.assert_close(entropy(logits).sum(), H)
    torch.testing.assert_close(kl(old, logits).sum(), KL)
    torch.testing.assert_close(multilinear(logits.softmax(-1), h, w), A)
    a = torch.tensor([2, 3])
    torch.testing.assert_close(log_prob_of(logits, a), p[0][1].log() + p[1][2].log())


class Bandit(VectorEnv):
    """Pays by context and two choices, of 3 and 4 of which one each is forbidden, or of 2 and 3 without those."""

    single_observation_space, num_envs = Box(-9, 9, (3,)), 4
    keep = ([0, 2], [0, 1, 3])

    def __init__(self, masked):
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.masked = masked
        self.single_action_space = MultiDiscrete([3, 4] if masked else [2, 3])
        self.table = np.random.default_rng(1).standard_normal((3, 3, 4))
        self.ended = np.zeros(4, bool)
        if masked:
            self.action_masks = lambda: np.array([[1, 0, 1, 1, 1, 0, 1]] * 4)

    def reset(self, *, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        return self._draw(), {}

    def _draw(self):
        self.x = self.random.standard_normal((4, 3)).astype(np.float32)
        return self.x

    def step(self, actions):
        a, b = actions.T if self.masked else (np.array(part)[n] for part, n in zip(self.keep, actions.T, strict=True))
        reward = np.einsum("ed,de->e", self.x, self.table[:, a, b]) * ~self.ended
        self.ended = ~self.ended & (self.random.random(4) < 0.2)
        late = self.ended & (self.random.random(4) < 0.5)
        return self._draw(), reward, self.ended & ~late, late, {}


ROWS = [0, 2, 4, 5, 7], [0, 1, 3, 4, 5]  # of F x K numbers, K = 4 or 3, those of the allowed choices
PAIRS = [4 * i + j for i in (0, 2) for j in (0, 1, 3)], [3 * i + j for i in range(2) for j in range(3)]
HEADS = ("policy.actor.net.4", "advantage.net.6")
HEADS_OF_AGENTS = ("policy.actor.net.layers.4", "target_actor.net.layers.4", "critic.net.layers.6")
HEADS_OF_AGENTS += ("target_critic.net.layers.6",)


def rows_of(name, which):
    """The rows of a head that belong to the allowed choices; all of another layer."""
    if not name.startswith(HEADS + HEADS_OF_AGENTS):
        return ...
    F, K = 2, (4, 3)[which]
    first = 1 if "critic" in name else 0  # V
    rows = [*range(first), *(first + n for n in ROWS[which])]
    rows += [first + F * K + n for n in PAIRS[which]] if name.startswith("advantage") or first else []
    return (0, rows) if name.startswith(HEADS_OF_AGENTS) else rows


SMALL = {"hidden": [8, 8], "batch_size": 32, "ent_coef": 0.1}
ALGORITHMS = [
    MultilinearActorCritic(Enumeration(), pairwise=True, ent_target=0.9, minibatches=4, gamma=0.9, **SMALL),
    PPO(epochs=2, normalize=True, **SMALL),
    MADDPG(Enumeration(), learning_starts=0, updates=8, polyak=0.5, logit_coef=0.1, **SMALL),
    MAPPO(epochs=2, normalize=True, **SMALL),
]


@each("algorithm", ALGORITHMS)
def test_training_with_a_forbidden_action_is_training_without_it(algorithm):
    both = []
    for masked in (True, False):
        torch.manual_seed(0)
        environments = Environments(Bandit(masked))
        agent = algorithm.build(environments.sizes)
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.05)
        both.append((agent, optimizer, Window(20, 16, 4, environments.sizes), Collector(environments, 0)))
    state, other = both[0][0].state_dict(), both[1][0].state_dict()
    start = {name: part.clone() for name, part in state.items()}
    for name, part in other.items():
        part[rows_of(name, 1)] = state[name][rows_of(name, 0)]
    for step in range(5):
        terms = []
        for which, (agent, optimizer, window, collector) in enumerate(both):
            actions = iter(both[0][2].sample(1, 0).action.unflatten(1, (-1, 4)).squeeze(1)) if which else None

            def act(x, mask, agent=agent, actions=actions):
                if actions is None:
                    return agent.policy.act(x, mask)
                chosen = torch.stack(
                    [torch.tensor([0, 0, 1])[(a := next(actions))[:, 0]], torch.tensor([0, 1, 0, 2])[a[:, 1]]], -1
                )
                return chosen, log_prob_of(agent.policy.actor(agent.policy.normalized(x), mask), chosen)

            torch.manual_seed(step)
            rollout = window.oldest()
            collector.fill(rollout, act)
            agent.policy.count(rollout.observation[:-1][rollout.valid])
            torch.manual_seed(step)  # of the minibatches
            terms.append(agent.improve(window, optimizer, Clock(collector.env_steps, 1000)))
        for name, term in terms[0].items():
            torch.testing.assert_close(term, terms[1][name], atol=1e-4, rtol=1e-4, msg=f"{name} in step {step}")
    for name, part in state.items():
        ours, theirs = part[rows_of(name, 0)], other[name][rows_of(name, 1)]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=name)
        if name.startswith(HEADS + HEADS_OF_AGENTS):
            lost = torch.ones_like(part, dtype=torch.bool)
            lost[rows_of(name, 0)] = False
            assert torch.equal(part[lost], start[name][lost])  # the forbidden choices' own rows do not move
            assert (ours - start[name][rows_of(name, 0)]).abs().max() > 1e-2
