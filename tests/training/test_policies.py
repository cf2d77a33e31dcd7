import json
import math
import warnings
from functools import partial
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import register
from gymnasium.spaces import Box, Discrete
from helpers.commands import run
from helpers.policies import BANDIT, MADDPG, POLICY, PPO, SMALL, improving, task, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Categorical, Independent, kl_divergence

from taugrad import Constant, Linear, ReinMax
from taugrad.errors import ConfigError, NonFiniteLossError
from taugrad.rl import evaluation
from taugrad.rl.algorithm import Clock
from taugrad.rl.environments import make
from taugrad.rl.evaluation import Evaluation
from taugrad.rl.masks import allowed
from taugrad.rl.multilinear import MultilinearActorCritic, minibatches, multilinear
from taugrad.rl.rollouts import Collection
from taugrad.training.policies import PolicyTask, _usage
from taugrad.training.runs import load_run
from taugrad.training.tensorboard import Film
from taugrad.training.trainer import check_callbacks


class Walk(gymnasium.Env):
    """Walks at random around `start`; its episodes last `steps`, or for ever."""

    action_space = Discrete(3, start=5)

    def __init__(self, steps=0, start=0.0):
        self.steps, self.start = steps, start
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.made, self.at = 0, np.full(2, self.start)
        return self.at.copy(), {}

    def step(self, action):
        self.made += 1
        self.at += self.np_random.standard_normal(2)
        return self.at.copy(), 1.0, self.made == self.steps, False, {}


if "Walk-v0" not in gymnasium.registry:  # pytest imports this twice
    register("Walk-v0", Walk)
WALK = ["env=gymnasium", "env.make.id=Walk-v0"]


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# Learning


@pytest.mark.parametrize(
    ("model", "steps"), [("policy", 8_000), ("ppo", 8_000)], ids=["straight-through Gumbel-Softmax", "PPO"]
)
def test_cart_poles_stand_longer_after_some_training(model, steps, tmp_path):
    # Random play lasts 22 steps; of 4 seeds none was below 197 (policy) and 145 (PPO).
    model = task(f"model={model}", f"env.max_env_steps={steps}", "evaluation.every=100_000")
    before = model.play(20, greedy=False)[0].mean()
    trainer(tmp_path, limit_val_batches=0).fit(model)
    after = model.play(20, greedy=False)[0].mean()
    assert before < 40
    assert after > 60
    assert after > 2 * before


@pytest.mark.parametrize(
    "overrides",
    [
        *(
            [f"estimator={name}"]
            for name in ("gumbel_softmax", "straight_through", "reinmax", "gumbel_rao", "enumeration")
        ),
        ["estimator=rloo", "estimator.samples=8"],
        ["estimator=gapped_straight_through"],
    ],
    ids=lambda overrides: overrides[0].split("=")[1],
)
def test_every_estimator_finds_the_better_choices_of_a_bandit(overrides):
    model, improve = improving(task(*BANDIT, "env.max_env_steps=100_000", "optimizer.lr=4e-3", *overrides))
    rewards = []
    while len(rewards) < 14 and sum(rewards[-4:]) / 4 <= 0.6:
        rollout = model.collect()
        improve()
        rewards.append(rollout.reward[rollout.valid].mean().item())
    assert sum(rewards[-4:]) / 4 > 0.6  # of 1; at random 0; of three seeds of each estimator none ended below 0.83


def test_a_policy_task_is_built_of_plain_objects_and_fitted_by_a_plain_trainer(tmp_path):
    collection = Collection(max_env_steps=200, num_envs=4, rollout_steps=8, window=3)
    model = PolicyTask(
        env=partial(make, "CartPole-v1"),
        model=MultilinearActorCritic(estimator=ReinMax(), tau=Linear(1.0, 0.5, steps=200), hidden=(8,), minibatches=2),
        collection=collection,
        evaluation=Evaluation(every=100, episodes=2, test_episodes=3),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        lr_factor=Constant(1.0),
    )
    before = weights(model.agent.policy.actor)
    fitted = trainer(tmp_path)
    fitted.fit(model)
    assert 200 <= model.collector.env_steps < 232
    assert not torch.equal(weights(model.agent.policy.actor), before)
    assert {"train/actor_loss", "policy/tau", "eval/mean_reward"} <= set(fitted.callback_metrics)
    assert fitted.callback_metrics["policy/tau"].item() == pytest.approx(0.5)
    assert set(model.metrics) >= {"eval/mean_reward"} <= set(fitted.test(model, verbose=False)[0])


# What the updates are made of


def test_the_critic_predicts_advantages_centred_by_the_policy():
    agent = task(*POLICY, "env=k_cartpoles", "env.make.poles=3", "model.pairwise=true").agent
    h, w = agent.advantage(torch.randn(6, 12))
    old = torch.randn(6, 3, 2)
    action, g, value, target = torch.randint(2, (6, 3)), torch.randn(6), torch.randn(6), torch.randn(6)
    z = torch.nn.functional.one_hot(action, 2).float()
    corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
    baseline = torch.zeros(6)
    for corner in corners:
        p = torch.stack([old[:, f].softmax(-1)[:, corner[f]] for f in range(3)]).prod(0)
        baseline += p * multilinear(torch.nn.functional.one_hot(corner, 2).float().expand(6, 3, 2), h, w)
    expected = ((multilinear(z, h, w) - baseline - g) ** 2).mean() / 2 + ((value - target) ** 2).mean() / 2
    torch.testing.assert_close(agent.critic_loss(h, w, value, old.softmax(-1), z, g, target), expected)


def test_entropy_and_kl_are_those_of_independent_factors():
    agent = task(*POLICY, "env=k_cartpoles", "env.make.poles=3").agent
    x = torch.randn(6, 12)
    h, w = agent.advantage(x)
    old = torch.randn(6, 3, 2)
    _, uncertainty, divergence = agent.actor_terms(x, allowed((2, 2, 2)), h, w, old, tau=1.0)
    p, q = Independent(Categorical(logits=old), 1), Independent(Categorical(logits=agent.policy.actor(x)), 1)
    torch.testing.assert_close(uncertainty, q.entropy().mean())
    torch.testing.assert_close(divergence, kl_divergence(p, q).mean())


def test_the_actors_gradient_leaves_the_critic_alone():
    model, _ = improving(task(*POLICY))
    agent = model.agent
    x, mask, old, *_ = agent._targets(model.window)
    h, w = agent.advantage(x)
    gain, *_ = agent.actor_terms(x, mask, h.detach(), w.detach(), old, tau=1.0)
    gain.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.policy.actor.parameters())
    assert all(p.grad is None for p in agent.advantage.parameters())


def test_the_actor_rests_when_it_has_moved_too_far():
    model, improve = improving(task(*POLICY, "model.kl_target=1e-12"))
    agent = model.agent
    counted = Mock(wraps=agent.hp.estimator.expectation)
    object.__setattr__(agent.hp.estimator, "expectation", counted)
    before = weights(agent.policy.actor)
    terms = improve()
    assert counted.call_count == 2  # the first step moves it, the second looks and rests
    assert not torch.equal(weights(agent.policy.actor), before)
    assert terms["train/approx_kl"] > 0


def test_the_penalty_follows_the_divergence():
    agent = task(*POLICY).agent
    for divergence, expected in ((1.0, 1.5), (0.0, 1.0), (0.0, 1 / 1.5)):
        agent._adapt_beta(torch.tensor(divergence), target=0.5)
        torch.testing.assert_close(agent.beta, torch.tensor(expected))
    for _ in range(50):
        agent._adapt_beta(torch.tensor(1.0), target=0.5)
    assert agent.beta == 30


def test_resets_are_in_no_target():
    model, _ = improving(task(*POLICY))
    window = model.window.sample(newest=4, others=12)
    assert not window.valid.all()  # there are some
    assert {len(part) for part in model.agent._targets(model.window)} == {int(window.valid.sum())}
    assert model.collector.env_steps == int(window.valid.sum())


@pytest.mark.parametrize(
    "overrides", [[*POLICY, "model.newest=1", "model.replayed=0"], POLICY, PPO], ids=["newest", "policy", "ppo"]
)
def test_a_rollout_of_nothing_but_resets_teaches_nothing_and_harms_nothing(overrides, tmp_path):
    one_step = [
        *WALK,
        "+env.make.steps=1",
        "collection.rollout_steps=1",
        "env.max_env_steps=40",
    ]  # every second rollout
    model = task(*overrides, *one_step)
    seen = []
    improve = model.agent.improve

    def watched(*arguments):
        seen.append((model.collector.env_steps, improve(*arguments)))
        return seen[-1][1]

    model.agent.improve = watched
    trainer(tmp_path, limit_val_batches=0, log_every_n_steps=1).fit(model)
    assert [steps for steps, _ in seen] == [n for step in range(4, 41, 4) for n in (step, step)][:-1]
    assert all(terms for _, terms in seen[::2])
    assert all(x.isfinite() for _, terms in seen for x in terms.values())
    assert all(x.isfinite().all() for x in model.state_dict().values())
    if "model=policy" not in overrides or "model.newest=1" in overrides:
        assert not any(terms for _, terms in seen[1::2])


def test_observations_far_from_zero_are_told_apart():
    parts = []
    for start in (0.0, 1e9):
        torch.manual_seed(0)
        model = task(*POLICY, *WALK, "+env.make.steps=5", f"+env.make.start={start}")
        for _ in range(3):
            model.collect()
        parts.append(model.agent.policy.normalized(model.window.sample(newest=3, others=0).observation))
    torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=1e-4)
    assert model.agent.policy.act(torch.full((4, 2), 1e9, dtype=torch.float64))[0].shape == (4, 1)
    assert task(*PPO, *WALK).greedy(torch.zeros(4, 2, dtype=torch.float64)).shape == (4, 1)  # without normalization


def test_an_episode_that_the_evaluation_cut_off_is_not_called_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "_MOST_STEPS", 20)
    model = task(*POLICY, *WALK)
    with warnings.catch_warnings(record=True) as caught:  # pytest.warns would raise Lightning's own again
        warnings.simplefilter("always")
        metrics = trainer(tmp_path).test(model, verbose=False)[0]
    assert sum("5 of 5 episodes had not ended after 20 steps" in str(w.message) for w in caught) == 2
    assert metrics["eval/unfinished"] == metrics["eval_sampled/unfinished"] == 1.0
    assert metrics["eval/mean_reward"] == 20


def test_the_shares_of_many_choices_are_one_number():
    chosen = torch.arange(1000)[:, None] * torch.tensor([1, 0])  # every choice of one factor, one of the other
    (perplexity,) = _usage(chosen, (1000, 1000), single=False).values()
    assert perplexity.item() == pytest.approx((1000 + 1) / 2, rel=1e-5)
    few = _usage(chosen[:32], (32, 32), single=True)
    assert len(few) == 64 + 1
    assert few["policy/action_0_31"] == 1 / 32
    assert (few["policy/action_1_0"], few["policy/action_1_31"]) == (1, 0)
    assert _usage(chosen[:0], (32, 32), single=True) == {}


def test_minibatches_take_each_index_once_before_any_twice():
    parts = list(minibatches(10, count=3, size=4))
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.cat(parts)[:10].sort().values.tolist() == list(range(10))
    assert len(torch.cat(list(minibatches(100, count=3, size=4))).unique()) == 12


def test_ppos_first_step_has_the_policy_gradients_gradient():
    model, _ = improving(task(*PPO))
    agent, actor = model.agent, model.agent.policy.actor
    x, mask, action, old, g, target = agent._targets(model.window)
    loss, terms = agent.loss(x, mask, action, old, g, target, eps=0.2)
    normalized = (g - g.mean()) / (g.std() + 1e-8)
    torch.testing.assert_close(terms["train/actor_loss"], -normalized.mean(), rtol=0, atol=1e-6)  # every ratio is 1
    torch.testing.assert_close(terms["train/approx_kl"], torch.tensor(0.0), rtol=0, atol=1e-6)
    by_loss = torch.autograd.grad(loss, list(actor.parameters()))
    log_pi = Categorical(logits=actor(x)[:, 0]).log_prob(action[:, 0])
    by_hand = torch.autograd.grad(-(normalized * log_pi).mean(), list(actor.parameters()))
    torch.testing.assert_close(by_loss, by_hand)


def test_ppos_ratio_has_no_gradient_beyond_its_range():
    model, _ = improving(task(*PPO))
    x, mask, action, old, _, target = model.agent._targets(model.window)
    for sign, shift in ((1.0, -1.0), (-1.0, 1.0)):  # a ratio of e with a good action, of 1/e with a bad one
        g = torch.full_like(old, sign)[:1]
        _, terms = model.agent.loss(x[:1], mask[:1], action[:1], old[:1] + shift, g, target[:1], eps=0.2)
        assert terms["train/actor_loss"].item() == pytest.approx(-sign * (1.2 if sign > 0 else 0.8))


def test_a_loss_that_is_not_finite_stops_and_is_named():
    model, improve = improving(task(*POLICY))
    with torch.no_grad():
        next(model.agent.value.parameters()).fill_(math.nan)
    with pytest.raises(
        NonFiniteLossError, match=r"the actor and critic term of the loss is nan at step \d+ \(tau = 0\.\d+\)"
    ):
        improve()


def test_the_entropy_falls_out_and_tau_follows_environment_steps():
    model, improve = improving(task(*POLICY, "tau=linear"))
    for steps, ent_coef, tau in ((0, 0.01, 1.0), (200, 0.005, 0.75), (500, 0.0, 0.5)):
        model.collector.env_steps = steps  # of 400
        terms = improve()
        assert terms["train/ent_coef"].item() == pytest.approx(ent_coef)
        assert terms["policy/tau"].item() == pytest.approx(tau)
        assert model.agent.ent_coef(Clock(steps, 400)) == pytest.approx(ent_coef)


def test_the_entropys_coefficient_follows_its_target_which_falls():
    uniform = 3 * math.log(2)
    parts = ["env=k_cartpoles", "env.make.poles=3", "model.ent_coef=0.1", "model.ent_target=0.5"]
    agent = task(*POLICY, *parts).agent
    assert agent.ent_coef(Clock(0, 400)) == pytest.approx(0.1)
    for steps, share, expected in ((0, 0.49, 0.105), (0, 0.51, 0.1), (200, 0.26, 0.1 / 1.05), (200, 0.24, 0.1)):
        agent._adapt_entropy(torch.tensor(share * uniform), uniform, Clock(steps, 400))
        assert agent.ent_coef(Clock(steps, 400)) == pytest.approx(expected)
    for entropy, expected in ((0.0, 3.0), (uniform, 1e-4)):
        for _ in range(250):
            agent._adapt_entropy(torch.tensor(entropy), uniform, Clock(200, 400))
        assert agent.ent_coef(Clock(200, 400)) == pytest.approx(expected)


def test_a_policy_with_an_entropy_target_stays_near_it():
    # Of 4 seeds the mean was 0.487 to 0.506 of the uniform policy's with the target, 0.16 to 0.18 without.
    small = ["model.newest=4", "model.replayed=4", "model.minibatches=4", "optimizer.lr=4e-3"]
    means = []
    for target, iterations in (("null", 40), ("0.5", 64)):
        changes = ["env.max_env_steps=1_000_000", "model.ent_coef=0.1", f"model.ent_target={target}"]
        model, improve = improving(task(*BANDIT, *changes, *small))
        entropies = []
        for _ in range(iterations):
            model.collect()
            entropies.append(improve()["policy/entropy"].item() / (2 * math.log(3)))
        means.append(sum(entropies[-16:]) / 16)
    assert means[0] < 0.2
    assert 0.45 < means[1] < 0.55


def test_the_first_hundred_good_episodes_are_noted_once():
    model = task(*POLICY)
    model.collector.returns.extend([500.0] * 99)
    model._note_solution()
    assert model.solved_at is None
    model.collector.env_steps = 77
    model.collector.returns.append(500.0)
    model._note_solution()
    model.collector.env_steps = 99
    model._note_solution()
    assert model.results() == {"env_steps": 99, "solved_at_env_steps": 77}


def test_an_environment_without_a_threshold_is_never_solved():
    model = task(*POLICY, "env=bandit")
    model.collector.returns.extend([500.0] * 100)
    model._note_solution()
    assert model.results()["solved_at_env_steps"] is None


def test_playing_repeats_and_disturbs_nothing():
    model = task(*POLICY)
    state = torch.get_rng_state()
    for greedy in (True, False):
        assert torch.equal(model.play(4, greedy=greedy)[0], model.play(4, greedy=greedy)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.collector.env_steps == 0


# Bad input, before training starts


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["env=bandit", "estimator=enumeration"], "8 latents of 6 classes have 6.8 configurations"),
        (
            ["env=gymnasium", "env.make.id=Pendulum-v1"],
            "actions must be Discrete, MultiDiscrete, MultiBinary or a",
        ),
        (["env=gymnasium", "env.make.id=CartPoll-v1"], "env.make.id=CartPoll-v1: "),
        (["env.make=5"], "env must be a function from num_envs to a vector environment, got 5"),
        (["model.tau=0.5"], r"tau must be a schedule, a function from a step to a number, such as .*, got 0.5"),
        (["model.estimator=5"], r"estimator must be an Estimator, such as STGumbelSoftmax\(\), got 5"),
        (["collection.num_envs=0"], "num_envs must be at least 1, got 0"),
        (["model.replayed=-1"], "replayed must be at least 0, got -1"),
        (["model.kl_target=0"], "kl_target must be a positive finite number, got 0"),
        (["model.gamma=1.5"], r"gamma must be in \[0, 1\], got 1.5"),
        (["model.ent_target=2"], r"ent_target must be in \[0, 1\], got 2"),
        (["model.ent_target=0.5", "model.ent_coef=0"], "ent_coef must be a positive finite number, got 0"),
    ],
)
def test_bad_input_is_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        task(*POLICY, *overrides)


def test_a_film_of_what_cannot_be_rendered_is_refused_before_training(tmp_path):
    module = task(*BANDIT, *SMALL)
    with pytest.raises(ConfigError, match="this environment cannot be rendered: "):
        check_callbacks([Film()], module)
    with pytest.raises(ConfigError, match="this environment cannot be rendered: "):
        trainer(tmp_path, callbacks=[Film()]).fit(module)
    assert module.collector.env_steps == 0


def test_another_precision_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a policy trains on one device in 32 bits, got .*precision=bf16-mixed"):
        trainer(tmp_path, precision="bf16-mixed").fit(task(*POLICY))


# As a user runs it


@pytest.fixture(scope="module", params=[POLICY, PPO], ids=["policy", "ppo"])
def trained(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("user")
    result = run("train.py", *request.param, "trainer.log_every_n_steps=1", cwd=directory)
    assert result.returncode == 0, result.stderr
    (run_directory,) = (directory / "outputs" / request.param[0].split("=")[1]).iterdir()
    return run_directory, result


def test_a_run_leaves_metrics_checkpoints_and_events_over_environment_steps(trained):
    run_directory, _ = trained
    metrics = json.loads((run_directory / "metrics.json").read_text())
    needed = {"eval/mean_reward", "eval/std_reward", "eval_sampled/mean_reward", "env_steps", "wall_seconds", "seed"}
    needed |= {"best/mean_reward", "best/std_reward"}
    assert needed | {"eval/iqm", "eval/iqm_low", "eval/iqm_high", "solved_at_env_steps"} <= set(metrics)
    assert metrics["solved_at_env_steps"] is None
    assert metrics["eval/unfinished"] == 0
    assert 400 <= metrics["env_steps"] < 432
    events = EventAccumulator(str(run_directory / "tensorboard"))
    events.Reload()
    training = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/actor_loss", "train/critic_loss"}
    training |= {"train/ent_coef", "train/approx_kl", "policy/entropy", "policy/action_0_0", "policy/action_0_1"}
    training |= {"policy/action_perplexity"}
    assert training | {"eval/mean_reward", "eval_sampled/mean_reward"} <= set(events.Tags()["scalars"])
    for tag in ("train/actor_loss", "eval/mean_reward"):
        assert events.Scalars(tag)[-1].step == metrics["env_steps"]
    shares = [events.Scalars(f"policy/action_0_{k}")[3].value for k in range(2)]
    assert sum(shares) == pytest.approx(1)


def test_an_evaluation_from_the_checkpoint_repeats_the_runs(trained):
    run_directory, _ = trained
    result = run("evaluate.py", f"run={run_directory}", cwd=run_directory.parent)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((run_directory / "metrics.json").read_text())
    evaluation = json.loads((run_directory / "evaluation.json").read_text())
    assert evaluation["eval/mean_reward"] == metrics["eval/mean_reward"]
    assert evaluation["eval_sampled/mean_reward"] == metrics["eval_sampled/mean_reward"]


def test_the_best_weights_play_other_episodes_at_the_end(trained):
    run_directory, _ = trained
    metrics = json.loads((run_directory / "metrics.json").read_text())
    task = load_run(run_directory, "best")[0]
    assert task.of_best() == {name: metrics[name] for name in ("best/mean_reward", "best/std_reward")}
    assert not torch.equal(task.play(5, greedy=True, seed=2_000_000).lengths, task.play(5, greedy=True).lengths)


def test_they_are_the_best_and_not_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(PolicyTask, "of_best", lambda self: {"best/mean_reward": weights(self).sum().item()})
    alike = "+env.make.max_episode_steps=5"  # so that the first evaluation is the best
    result = run("train.py", *POLICY, alike, f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    best, last = (weights(load_run(tmp_path, name)[0]).sum().item() for name in ("best", "last"))
    assert json.loads((tmp_path / "metrics.json").read_text())["best/mean_reward"] == best != last


def test_an_evaluation_plays_more_episodes_and_films_one(trained):
    run_directory, _ = trained
    result = run("evaluate.py", f"run={run_directory}", "episodes=7", "video=film.gif", cwd=run_directory)
    assert result.returncode == 0, result.stderr
    from PIL import Image

    with Image.open(run_directory / "film.gif") as film:
        assert film.n_frames > 5


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("video=film.txt", "video must end in .gif or .mp4, got film.txt"),
        ("num_samples=3", "nll_samples cannot be set"),
    ],
)
def test_an_evaluation_with_bad_arguments_is_one_sentence(trained, argument, sentence):
    run_directory, _ = trained
    result = run("evaluate.py", f"run={run_directory}", argument, cwd=run_directory)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("overrides", [POLICY, PPO, MADDPG], ids=["policy", "ppo", "maddpg"])
def test_a_resumed_run_goes_on_where_it_was(overrides, tmp_path):
    first = trainer(tmp_path, limit_val_batches=0)
    first.fit(task(*overrides))
    first.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    model = task(*overrides, "env.max_env_steps=800")
    seen = []
    improve = model.agent.improve

    def watched(window, optimizer, clock):
        steps = optimizer.state_dict()["state"][0]["step"]
        seen.append((model.collector.env_steps, window.added, len(model.collector.returns), steps.item()))
        return improve(window, optimizer, clock)

    model.agent.improve = watched
    trainer(tmp_path, limit_val_batches=0).fit(model, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    env_steps, added, episodes, steps = seen[0]
    state = saved["acting"]
    assert state["env_steps"] < env_steps <= state["env_steps"] + 32
    assert added == state["window"]["added"] + 1
    assert episodes >= len(state["returns"]) > 0
    assert steps == saved["optimizer_states"][0]["state"][0]["step"] > 0
    assert model.collector.env_steps >= 800


def test_a_changed_option_on_resume_is_honoured_or_refused(trained, tmp_path):
    run_directory, _ = trained
    overrides = POLICY if run_directory.parent.name == "policy" else PPO
    resumed = [f"ckpt_path={run_directory}/checkpoints/last.ckpt", "env.max_env_steps=500"]
    result = run("train.py", *overrides, *resumed, "optimizer.lr=0.01", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (directory,) = (tmp_path / "outputs" / run_directory.parent.name).iterdir()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert 500 <= metrics["env_steps"] < 532
    content = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] < 0.01  # by its schedule: 0.01 x what is left
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] > 1e-5
    for change, sentence in (
        ("seed=7", "seed cannot change on resume: the checkpoint has 0, got 7"),
        ("collection.num_envs=5", "collection.num_envs cannot change on resume: the checkpoint has 4, got 5"),
        ("env=acrobot", "env.make.id cannot change on resume: the checkpoint has CartPole-v1, got Acrobot-v1"),
        ("++optimizer.eps=0.1", "optimizer.eps cannot change on resume: the checkpoint has "),
    ):
        result = run("train.py", *overrides, *resumed, change, cwd=tmp_path)
        assert result.returncode == 1
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_a_film_goes_to_tensorboard_on_request(tmp_path):
    result = run("train.py", *POLICY, "callbacks=film", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (directory,) = (tmp_path / "outputs" / "policy").iterdir()
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    films = events.Images("eval/film")
    assert len(films) == 3
    assert films[0].encoded_image_string.startswith(b"GIF89a")
    assert (films[0].width, films[0].height) == (600, 400)
