"""PPO for several agents: PPO to the bit for one, loops for more, and a game whose best return is known."""

from functools import partial

import pytest
import torch
from helpers.cases import each
from helpers.matching import BEST, PARTS, best_return, filled

from taugrad.rl.algorithm import Clock
from taugrad.rl.envs.bandit import FactoredBandit
from taugrad.rl.mappo import MAPPO
from taugrad.rl.masks import allowed
from taugrad.rl.ppo import PPO
from taugrad.rl.spaces import Sizes

SIZES = Sizes((6,), (3, 4, 2, 2), PARTS)
SMALL = partial(MAPPO, hidden=(8,), epochs=2, batch_size=16)
OWN = [[0], [1, 2], [3]]  # factors of each agent


@each("central, shared", [(True, False), (False, True)])
def test_for_one_agent_it_is_ppo_to_the_bit(central, shared):
    same = {"hidden": (8,), "epochs": 2, "batch_size": 16, "gamma": 0.9, "lam": 0.8, "ent_coef": 0.1}
    weights = []
    for algorithm in (PPO(**same), MAPPO(central=central, shared=shared, **same)):
        torch.manual_seed(0)
        agent, window, collector, optimizer = filled(algorithm, make=partial(FactoredBandit, factors=5, choices=3))
        for _ in range(2):
            terms = agent.improve(window, optimizer, Clock(collector.env_steps, 1000))
        weights.append(
            torch.cat([p.detach().flatten() for p in agent.parameters()] + [*map(torch.atleast_1d, terms.values())])
        )
    assert torch.equal(*weights)


def test_the_targets_are_those_of_a_loop():
    agent, window, *_ = filled(SMALL(gamma=0.9, lam=0.7), rollouts=1)
    (*_, got, target), alive = agent._targets(window)
    r = window.sample(1, 0)
    T, E, N = r.reward.shape
    values = agent.values(r.observation)
    g = torch.zeros(T, E, N)
    for e in range(E):
        for i in range(N):
            after = 0.0
            for t in reversed(range(T)):
                over = bool(r.terminated[t, e]) or (bool(r.alive[t, e, i]) and not r.alive[t + 1, e, i])
                done = over or bool(r.truncated[t, e])
                delta = r.reward[t, e, i] + 0.9 * (0.0 if over else values[t + 1, e, i]) - values[t, e, i]
                g[t, e, i] = after = delta + (0.0 if done else 0.9 * 0.7 * after)
    assert torch.equal(alive, r.alive[:-1][r.valid])
    assert not alive.all()
    torch.testing.assert_close(got[alive], g[r.valid][alive])
    torch.testing.assert_close(target[alive], (g + values[:-1])[r.valid][alive])


def test_the_loss_is_the_mean_over_choices_of_living_agents():
    agent, window, *_ = filled(SMALL(ent_coef=0.3, vf_coef=0.7), rollouts=1)
    (x, mask, action, old, g, target), alive = agent._targets(window)
    living = alive.flatten().nonzero()[:, 0]
    old = old + 0.3 * torch.randn_like(old)
    loss, _ = agent.loss(x, mask, action, old, g, target, living, 0.2)
    logits, values = agent.policy.actor(x, mask), agent.values(x)
    some = g[alive]
    normal = (g - some.mean()) / (some.std() + 1e-8)
    terms = []
    for b, i in alive.nonzero().tolist():
        pi = logits[b, OWN[i]].softmax(-1)
        rho = (pi.gather(-1, action[b, OWN[i], None]).log().sum() - old[b, i]).exp()
        gain = min(rho * normal[b, i], rho.clamp(0.8, 1.2) * normal[b, i])
        terms.append(-gain + 0.7 * (values[b, i] - target[b, i]) ** 2 + 0.3 * (pi * pi.clamp_min(1e-9).log()).sum())
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    moved = [part.clone() for part in (action, old, g, target)]
    moved[0][:, 3] = torch.where(alive[:, 2], action[:, 3], 1 - action[:, 3])
    for part in moved[1:]:
        part[~alive] = 1e3
    assert torch.equal(agent.loss(x, mask, *moved, living, 0.2)[0], loss)


@each("central", [True, False])
def test_a_value_sees_everything_or_what_its_agent_sees(central):
    agent = SMALL(central=central).build(SIZES)
    x = torch.randn(4, 6)
    moved = x.clone()
    moved[:, :3] += 1.0  # what red sees
    same = agent.values(x) == agent.values(moved)
    assert not same[:, 0].any()
    assert bool(same[:, 1:].any()) == (not central)
    assert agent.policy.act(x, allowed(SIZES.factors).expand(4, -1, -1))[0].shape == (4, 4)


def test_a_short_training_finds_the_best_return():
    algorithm = MAPPO(gamma=0.5, lam=0.9, epochs=4, batch_size=64, ent_coef=0.03)
    assert (
        best_return(algorithm, lr=5e-3, steps=2000, capacity=1, rollout=8) == BEST
    )  # so did 4 of 4 seeds, and 4 with central=False


def test_a_rollout_of_resets_teaches_nothing():
    agent, window, collector, optimizer = filled(SMALL(), rollouts=1)
    window.oldest().valid.fill_(False)
    assert agent.improve(window, optimizer, Clock(collector.env_steps, 1000)) == {}


def test_a_step_without_living_agents_teaches_nothing():
    agent, window, collector, optimizer = filled(SMALL(batch_size=1), rollouts=1)
    rollout = window.sample(1, 0)
    window._all.alive[0, 3] = False  # such as in an environment of one's own, whose agents all wait for a step
    assert len(agent._targets(window)[1]) == int(rollout.valid.sum()) - int(rollout.valid[3].sum())
    terms = agent.improve(window, optimizer, Clock(collector.env_steps, 1000))
    assert all(term.isfinite() for term in terms.values())


@each(
    "options, sentence",
    [
        (
            {"shared": True},
            r"shared=true needs agents of equal sizes: red has 3 numbers and factors \(3,\), green 2 and",
        ),
        ({"gamma": 2.0}, r"gamma must be in \[0, 1\], got 2.0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"clip_range": 0.0}, "clip_range must be a positive finite number"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        MAPPO(**options).build(SIZES)
