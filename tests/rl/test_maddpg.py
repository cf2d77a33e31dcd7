"""MADDPG against loops and enumeration, and on a game whose best return is known."""

import copy
import itertools
from functools import partial

import pytest
import torch
from helpers.cases import each
from helpers.environments import counters
from helpers.estimators import EVERY
from helpers.matching import BEST, PARTS, best_return, collect, filled
from helpers.samples import FALSE_FAILURE, frequencies_p_value

from taugrad import RLOO, Enumeration, Linear, STGumbelSoftmax
from taugrad.errors import ConfigError, NonFiniteLossError
from taugrad.nets import mlp
from taugrad.rl.algorithm import Clock
from taugrad.rl.environments import make
from taugrad.rl.maddpg import MADDPG
from taugrad.rl.rollouts import Collector, Window, next_alive
from taugrad.rl.several import Actors, Layout, MLPs
from taugrad.rl.spaces import Part, Sizes

SIZES = Sizes((6,), (3, 4, 2, 2), PARTS)
SMALL = partial(MADDPG, hidden=(8,), learning_starts=0, updates=2, batch_size=16)
OWN = [(slice(0, 3), [0]), (slice(3, 5), [1, 2]), (slice(5, 6), [3])]  # observations and factors of each agent
TWINS = (Part("a", 3, (2, 3)), Part("b", 3, (2, 3)))


def steep(actor):
    """Make an actor deterministic, but for rounding."""
    with torch.no_grad():
        for p in actor.net.parameters():
            p.normal_().mul_(1e3)


# Networks


@each("parts, shared", [(PARTS, False), (TWINS, False), (TWINS, True)])
def test_an_agents_logits_depend_on_what_it_sees_alone(parts, shared):
    actor = Actors(parts, (8,), shared)
    x = torch.randn(5, sum(part.observation for part in parts))
    layout, logits = Layout(parts), actor(x)
    assert torch.equal(logits.isfinite(), actor.allowed.expand_as(logits))
    for i in range(len(parts)):
        moved = torch.randn_like(x)
        columns = layout.columns[i, : parts[i].observation]
        moved[:, columns] = x[:, columns]
        again = actor(moved)
        assert torch.equal(again[:, layout.owner == i], logits[:, layout.owner == i])
        assert (again != logits)[:, layout.owner != i].any()
    if parts is TWINS:
        same = actor(x[:, :3].repeat(1, 2))
        assert (same[:, :2] != same[:, 2:]).any()  # told which agent it is


def test_networks_at_once_compute_what_each_would():
    nets = [mlp(n, [8, 8], outputs, "ReLU", layer_norm=True) for n, outputs in ((4, 3), (2, 5), (4, 5))]
    for net in nets:  # norms that do something
        torch.nn.init.normal_(net[1].weight)
        torch.nn.init.normal_(net[1].bias)
    x = torch.randn(7, 2, 3, 4)
    x[..., 1, 2:] = 0
    out = MLPs(nets)(x)
    for i, net in enumerate(nets):
        n = net[-1].out_features
        torch.testing.assert_close(out[..., i, :n], net(x[..., i, : net[0].in_features]))
        assert (out[..., i, n:] == 0).all()
    torch.testing.assert_close(MLPs(nets)(x[0, 0]), out[0, 0])


def test_the_layout_joins_what_it_splits():
    layout = Layout(PARTS)
    logits = torch.randn(5, 4, 4).masked_fill(~Actors(PARTS, (8,), False).allowed, -torch.inf)
    rows = layout.split(logits)
    assert rows.shape == (5, 3, 2, 4)
    assert torch.equal(layout.join(rows), logits)
    assert torch.equal(rows[:, 0, 1], torch.tensor([0.0, *[-torch.inf] * 3]).expand(5, 4))  # nothing to choose
    a, z = torch.randn(5, 4, 4), torch.randn(2, 5, 3, 2, 4)
    joint = layout.replaced(a, z)
    for i, (_, factors) in enumerate(OWN):
        for f in range(4):
            expected = z[:, :, i, factors.index(f)] if f in factors else a[:, f].expand(2, -1, -1)
            assert torch.equal(joint[:, :, i, f], expected)


# Replay


def test_transitions_are_drawn_alike_and_none_is_a_reset():
    environments = counters()  # episodes of 3 steps that show the step they are at
    window = Window(3, steps=5, num_envs=2, sizes=environments.sizes)
    assert len(window.draw(4).action) == 0
    collector = Collector(environments, seed=0)
    for _ in range(2):
        collector.fill(window.oldest(), lambda x, mask: (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2)))
    drawn = window.draw(3000)
    x = drawn.observation[:, 0]
    assert torch.equal(drawn.next_observation[:, 0], x + 1)
    assert torch.equal(drawn.terminated[:, 0], x == 2)
    counts = torch.bincount(x.long(), minlength=4)
    assert frequencies_p_value(counts, torch.tensor([6, 6, 4, 0]) / 16) > FALSE_FAILURE
    assert frequencies_p_value(counts, torch.tensor([4, 6, 6, 0]) / 16) < FALSE_FAILURE  # power


def test_who_leaves_has_terminated_and_who_runs_out_of_time_has_not():
    _, window, *_ = filled(SMALL())
    drawn = window.draw(500)
    left = drawn.alive & ~drawn.next_alive
    assert left[:, 2].any()
    assert not left[:, :2].any()
    assert torch.equal(drawn.terminated, ~drawn.next_alive)
    alive = torch.tensor([[True, True, False]] * 3)
    later = torch.tensor([[True, False, False], [False, False, False], [False, False, False]])
    truncated = torch.tensor([True, True, False])
    expected = [[True, False, False], [True, True, False], [False, False, False]]
    assert next_alive(alive, later, truncated).tolist() == expected


# Losses


@each("critic, scaled", [("concat", False), ("multilinear", True)])
def test_the_targets_are_those_of_a_loop(critic, scaled):
    agent, window, *_ = filled(SMALL(critic=critic, gamma=0.9, normalize_rewards=scaled))
    agent._count_rewards(window)
    steep(agent.target_actor)
    batch = window.draw(40)
    S = agent.square.sqrt().item() if scaled else 1.0
    expected = torch.zeros(40, 3)
    for b in range(40):
        x = batch.next_observation[b]
        logits = agent.target_actor(x[None], batch.next_mask[b][None])[0]
        joint = torch.zeros(4, 4)
        for i, (_, factors) in enumerate(OWN):
            for f in factors:
                if batch.next_alive[b, i]:
                    joint[f, logits[f].argmax()] = 1.0
        value = agent.target_critic.at(x[None])(joint[None, None])[0]
        for i in range(3):
            rest = 0.0 if batch.terminated[b, i] else value[i].item()
            expected[b, i] = batch.reward[b, i] / S + 0.9 * rest
    torch.testing.assert_close(agent.targets(batch), expected, rtol=1e-4, atol=1e-5)
    assert batch.terminated.any()


def test_the_scale_is_the_root_mean_square_of_living_agents_rewards():
    agent, window, collector, _ = filled(SMALL(), rollouts=0)
    rewards = []
    for _ in range(3):
        collect(agent, window, collector)
        agent._count_rewards(window)
        newest = window.sample(1, 0)
        rewards.append(newest.reward[newest.valid[..., None] & newest.alive[:-1]])
    torch.testing.assert_close(agent.square, torch.cat(rewards).double().square().mean())


def test_the_multilinear_gradient_is_that_of_the_enumerated_expectation():
    agent, window, *_ = filled(SMALL(Enumeration(), logit_coef=0.0))
    agent.double()
    agent.policy.normalized = lambda x: x.double()
    batch = window.draw(5)._replace(alive=torch.ones(5, 3, dtype=torch.bool))
    actors = list(agent.policy.actor.parameters())
    loss, _, _ = agent.losses(batch, 1.0, 0.0)
    got = torch.autograd.grad(loss, actors)
    x = batch.observation.double()
    pi = agent.policy.actor(x, batch.mask).softmax(-1)
    gain = torch.zeros((), dtype=torch.float64)
    for choices in itertools.product(range(3), range(4), range(2), range(2)):
        a = torch.nn.functional.one_hot(torch.tensor(choices), 4).double()
        q = agent.critic.at(x)(a.expand(5, 1, 4, 4)).detach()
        for i, (_, factors) in enumerate(OWN):
            p = torch.ones(5, dtype=torch.float64)
            for f, k in enumerate(choices):
                p = p * (pi[:, f, k] if f in factors else pi[:, f, k].detach())
            gain = gain + (p * q[:, i]).sum() / 15
    for mine, exact in zip(got, torch.autograd.grad(-gain, actors), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)


def test_the_concat_gradient_uses_the_replayed_choices_of_others():
    agent, window, *_ = filled(SMALL(Enumeration(), critic="concat", logit_coef=0.1))
    batch = window.draw(5)._replace(alive=torch.ones(5, 3, dtype=torch.bool))
    torch.manual_seed(1)
    loss, critic_loss, _ = agent.losses(batch, 1.0, 0.2)
    torch.manual_seed(1)
    targets = agent.targets(batch)
    x, q = batch.observation, agent.critic.at(batch.observation)
    logits = agent.policy.actor(x, batch.mask)
    a = torch.nn.functional.one_hot(batch.action, 4).float()
    expected = torch.zeros(())
    for i, (_, factors) in enumerate(OWN):
        for choices in itertools.product(range(4), repeat=len(factors)):
            joint = a.clone()
            joint[:, factors] = torch.eye(4)[list(choices)]
            p = logits.softmax(-1)[:, factors, list(choices)].prod(-1)
            expected = expected - (p * q(joint[:, None])[:, i]).sum() / 15
        for f in factors:
            for b in range(5):
                row = logits[b, f][batch.mask[b, f]]
                expected = expected + 0.1 * row.square().mean() / 15
                expected = expected + 0.2 * (row.softmax(-1) * row.log_softmax(-1)).sum() / 15
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(critic_loss, 0.5 * (q(a[:, None]) - targets).square().mean())


@each("critic", ["concat", "multilinear"])
def test_an_agent_that_is_not_alive_contributes_nothing(critic):
    agent, window, *_ = filled(SMALL(Enumeration(), critic=critic))
    batch = window.draw(30)
    batch = batch._replace(alive=torch.tensor([True, True, False]).expand(30, 3))
    reward, action = batch.reward.clone(), batch.action.clone()
    reward[:, 2], action[:, 3] = 1e3, 1 - action[:, 3]
    torch.manual_seed(1)
    before = agent.losses(batch, 1.0, 0.0)
    torch.manual_seed(1)
    after = agent.losses(batch._replace(reward=reward, action=action), 1.0, 0.0)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    weight = next(agent.policy.actor.parameters())  # (N, ...)
    gradient = torch.autograd.grad(before[0], weight)[0]
    assert (gradient[2] == 0).all()
    assert gradient[:2].abs().amax((1, 2)).min() > 0
    assert (
        sum(term.isfinite().all() for term in agent.losses(batch._replace(alive=batch.alive & False), 1.0, 0.0)[:2])
        == 2
    )


# Improving


def test_the_target_networks_follow_and_no_optimizer_moves_them():
    agent, window, collector, optimizer = filled(SMALL(polyak=0.25, updates=3))
    targets = [*agent.target_actor.parameters(), *agent.target_critic.parameters()]
    sources = [*agent.policy.actor.parameters(), *agent.critic.parameters()]
    assert all(torch.equal(t, s) and not t.requires_grad for t, s in zip(targets, sources, strict=True))
    for target in targets:
        target.zero_()
    optimizer.param_groups[0]["lr"] = 0.0
    agent.improve(window, optimizer, Clock(collector.env_steps, 1000))
    for target, source in zip(targets, sources, strict=True):
        torch.testing.assert_close(target, source * (1 - 0.75**3))
    assert {name.split(".")[0] for name in agent.state_dict()} >= {"target_actor", "target_critic", "square"}


@each("estimator", EVERY)
def test_every_estimator_moves_the_actors_and_the_actors_loss_moves_no_critic(estimator):
    agent, window, collector, optimizer = filled(SMALL(estimator, updates=1, normalize_rewards=False, ent_coef=0.0))
    critics = list(agent.critic.parameters())
    torch.manual_seed(1)
    window.sample(1, 0)  # as the count of rewards does
    batch = window.draw(16)
    _, critic_loss, _ = agent.losses(batch, 1.0, 0.0)
    expected = torch.autograd.grad(critic_loss, critics)
    norm = torch.stack([g.norm() for g in expected]).norm()
    before = [p.detach().clone() for p in agent.policy.actor.parameters()]
    torch.manual_seed(1)
    terms = agent.improve(window, optimizer, Clock(collector.env_steps, 1000))
    got = torch.stack([p.grad.norm() for p in critics]).norm()
    torch.testing.assert_close(got, norm.clamp_max(2.0), rtol=1e-4, atol=1e-6)
    assert any((p != old).any() for p, old in zip(agent.policy.actor.parameters(), before, strict=True))
    assert all(term.isfinite() for term in terms.values())


def test_a_training_that_ends_before_the_first_update_is_refused():
    agent, window, _, optimizer = filled(SMALL(learning_starts=1000))
    with pytest.raises(ConfigError, match="learning_starts must be below the 1000 steps of all, got 1000"):
        agent.improve(window, optimizer, Clock(50, 1000))


def test_nothing_is_learned_before_its_time_or_from_resets_alone():
    agent, window, collector, optimizer = filled(SMALL(learning_starts=50, ent_coef=0.4))
    assert agent.improve(window, optimizer, Clock(49, 1000)) == {}
    torch.testing.assert_close(agent.improve(window, optimizer, Clock(50, 1000))["train/ent_coef"], torch.tensor(0.38))
    window.sample(1, 0)
    empty = Window(2, 8, 4, collector.environments.sizes)
    empty.oldest()
    assert agent.improve(empty, optimizer, Clock(50, 1000)) == {}


def test_an_agent_comes_back_from_its_state_and_goes_on_to_the_same_numbers():
    def go_on(agent, window, optimizer):
        torch.manual_seed(5)
        agent.improve(window, optimizer, Clock(500, 1000))
        return torch.cat([p.detach().flatten() for p in agent.parameters()])

    agent, window, _, optimizer = filled(SMALL(normalize=True))
    agent.improve(window, optimizer, Clock(400, 1000))
    other, copied, _, again = filled(SMALL(normalize=True), rollouts=1)
    other.load_state_dict(agent.state_dict())
    copied.load_state_dict(window.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(go_on(agent, window, optimizer), go_on(other, copied, again))


@each("critic, estimator, updates", [("multilinear", STGumbelSoftmax(), 10), ("concat", RLOO(samples=4), 16)])
def test_a_short_training_finds_the_best_return(critic, estimator, updates):
    options = {"learning_starts": 500, "gamma": 0.5, "updates": updates, "batch_size": 128, "ent_coef": 0.1}
    algorithm = MADDPG(estimator, Linear(1.0, 0.5, steps=2500), critic=critic, hidden=(32,), **options)
    assert best_return(algorithm, lr=5e-3, steps=2500, capacity=50, rollout=16) == BEST  # so did 4 of 4 seeds of each


def test_one_agent_is_several_of_one():
    cart = partial(make, "CartPole-v1")
    for shared in (False, True):
        agent, window, collector, optimizer = filled(SMALL(shared=shared), make=cart)
        assert agent.improve(window, optimizer, Clock(collector.env_steps, 1000))["train/critic_loss"] > 0


def test_a_loss_that_is_not_finite_is_named():
    agent, window, collector, optimizer = filled(SMALL(critic_clip=1e-3))
    next(agent.critic.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="the actor and critic term of the loss is nan at step"):
        agent.improve(window, optimizer, Clock(collector.env_steps, 1000))


@each(
    "options, sentence",
    [
        ({"tau": 0.5}, "tau must be a schedule, a function from a step to a number, such as .*, got 0.5"),
        ({"estimator": STGumbelSoftmax}, "estimator must be an Estimator, such as .*, got <class"),
        ({"critic": "sum"}, "critic must be one of concat, multilinear, got 'sum'"),
        ({"polyak": 1.5}, r"polyak must be in \[0, 1\], got 1.5"),
        ({"polyak": 0.0}, "polyak must be a positive finite number"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"hidden": (0,)}, r"hidden\[0\] must be at least 1, got 0"),
        ({"learning_starts": -1}, "learning_starts must be at least 0, got -1"),
        (
            {"shared": True},
            r"shared=true needs agents of equal sizes: red has 3 numbers and factors \(3,\), green 2 and",
        ),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        MADDPG(**options).build(SIZES)


def test_too_much_to_enumerate_is_refused_by_an_agents_own_choices():
    many = Part("a", 1, (4,) * 11)
    with pytest.raises(ValueError, match="11 latents of 4 classes"):
        MADDPG(Enumeration()).build(Sizes((1,), many.factors, (many,)))
    MADDPG(Enumeration()).build(Sizes((11,), (4,) * 11, tuple(Part(str(i), 1, (4,)) for i in range(11))))
