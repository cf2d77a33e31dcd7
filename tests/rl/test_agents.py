import importlib
import os
import signal
import subprocess
import sys
import time
import types
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Sequence, Tuple
from gymnasium.vector import SyncVectorEnv
from helpers.cases import each
from helpers.environments import Counter
from helpers.policies import POLICY, task, trainer
from helpers.trio import CHOOSES, FACTORS, SEES, Trio

from taugrad.errors import ConfigError, DataError
from taugrad.rl.environments import Environments, build
from taugrad.rl.envs.agents import Joint, make, make_parallel
from taugrad.rl.evaluation import evaluate
from taugrad.rl.spaces import Part
from taugrad.training.tensorboard import Scalars

NAMES = tuple(SEES)
PLACES = {"scout": slice(0, 2), "pilot": slice(2, 6), "guard": slice(6, 9)}
SLICES = {"scout": slice(0, 1), "pilot": slice(1, 3), "guard": slice(3, 6)}
MASKS = {"scout": slice(0, 3), "pilot": slice(3, 8), "guard": slice(8, 14)}
TRIO = ["model=policy", "env=pettingzoo", "env.make.id=helpers.trio", *POLICY[1:]]


def raw_action(choices, name):
    """The action of an agent that choices counted from 0 stand for, as the raw environment takes it."""
    if name == "scout":
        return int(choices[0]) - 1
    if name == "pilot":
        return np.array([choices[0], choices[1] + 4])
    return int(choices[0]), np.array(choices[1:], dtype=np.int8)


def numbers(seen, name):
    if name == "pilot":
        return np.eye(4)[seen["observation"]]
    return np.ravel(seen)


def check_seen(observation, info, seen, told, alive):
    """Compare what is joined with what the raw environment shows its living agents."""
    assert info["alive"].tolist() == [name in alive for name in NAMES]
    for name in NAMES:
        here = name in alive
        shown, mask = observation[PLACES[name]], info["action_mask"][MASKS[name]]
        if not here:
            assert not shown.any()
        else:
            np.testing.assert_array_equal(shown, numbers(seen[name], name))
        if not here or name == "scout":
            assert mask.all()
        else:
            own = (seen if name == "pilot" else told)[name]["action_mask"]
            np.testing.assert_array_equal(mask, np.concatenate([own[0], *own[1]]) if isinstance(own, list) else own)


def test_every_transition_is_the_raw_environments():
    random = np.random.default_rng(1)
    kinds = set()
    joint, raw = Joint(Trio()), Trio()
    for episode in range(60):
        seed = episode if episode % 2 == 0 else None  # the environment's own generator goes on
        (observation, info), (seen, told) = joint.reset(seed=seed), raw.reset(seed=seed)
        check_seen(observation, info, seen, told, raw.agents)
        assert not info["rewards"].any()
        ended = False
        while not ended:
            action = random.integers(joint.action_space.nvec)
            acting = list(raw.agents)
            observation, reward, terminated, truncated, info = joint.step(action)
            seen, rewards, over, late, told = raw.step({a: raw_action(action[SLICES[a]], a) for a in acting})
            assert info["rewards"].tolist() == [rewards.get(name, 0.0) for name in NAMES]
            assert reward == sum(rewards.values())
            ended = not raw.agents
            cut = [a for a in acting if late[a] and not over[a]] if ended else []
            assert (terminated, truncated) == (ended and not cut, bool(cut))
            check_seen(observation, info, seen, told, cut if ended else raw.agents)
            kinds.add((len(acting), terminated, truncated, len(cut)))
    assert {(1, True, False, 0), (1, False, True, 1), (3, False, False, 0)} <= kinds
    assert any(n > 1 and t for n, _, t, _ in kinds)
    joint.close()
    assert joint.env.closed


def test_the_joined_spaces_and_parts_are_the_agents_in_their_order():
    joint = Joint(Trio())
    assert joint.metadata["agents"] == tuple(Part(n, s.stop - s.start, FACTORS[n]) for n, s in PLACES.items())
    assert joint.metadata["render_fps"] == 7
    assert joint.observation_space.low.tolist() == [-5, -5, *[0] * 7]
    assert joint.observation_space.high.tolist() == [5, 5, *[1] * 7]
    assert joint.action_space.nvec.tolist() == [3, 2, 3, 2, 2, 2]
    with pytest.raises(ConfigError, match=r"^agent pilot: a policy's actions must be Discrete.*Box"):
        Joint(changed(Trio(), action_space=lambda a: Box(0, 1, (1,)) if a == "pilot" else CHOOSES[a]))
    with pytest.raises(ConfigError, match=r"^agent guard: a policy's observations must be Box.*Sequence"):
        Joint(changed(Trio(), observation_space=lambda a: Sequence(Discrete(3)) if a == "guard" else SEES[a]))


def changed(env, **attributes):
    vars(env).update(attributes)
    return env


def test_tensors_have_the_agents_rewards_lives_and_masks():
    ends = [(2, "terminated"), (4, "truncated"), (4, "terminated")]
    environments = build(partial(make_parallel, "helpers.trio"), 2, ends=ends)
    assert [part.name for part in environments.sizes.agents] == list(NAMES)
    seen = environments.reset(0)
    assert seen.mask.shape == (2, 6, 3)
    rows = []
    for _ in range(6):
        step = environments.step(torch.zeros(2, 6, dtype=torch.int64))
        rows.append(
            [x[0].tolist() for x in (step.seen.alive, step.reward, step.terminated, step.truncated, step.valid)]
        )
    reward, none = [-10.0, 40.0, 0.0], [0.0, 0.0, 0.0]  # of the scout's -1, the pilot's 0 and 4, the guard's 0
    later = [0.0, 40.0, 0.0]
    assert rows == [
        [[True, True, True], reward, False, False, True],
        [[False, True, True], reward, False, False, True],
        [[False, True, True], later, False, False, True],
        [[False, True, False], later, False, True, True],  # the pilot was left
        [[True, True, True], none, False, False, False],
        [[True, True, True], reward, False, False, True],
    ]


def test_a_time_limit_leaves_the_agents_alive():
    ends = [(9, "terminated")] * 3
    environments = build(partial(make_parallel, "helpers.trio"), 1, time_limit=2, ends=ends)
    environments.reset(0)
    steps = [environments.step(torch.zeros(1, 6, dtype=torch.int64)) for _ in range(2)]
    assert steps[1].truncated.all()
    assert steps[1].seen.alive.all()
    episodes = evaluate(environments, lambda x, mask: mask.int().argmax(-1), seed=0)
    assert episodes.each.shape == (1, 3)
    assert torch.equal(episodes.each.sum(1), episodes.returns)


class Lingers(Trio):
    """Lists every agent for the whole episode, and takes and ignores what those do that have ended."""

    def step(self, given):
        acting, self.agents = list(given), [a for a in NAMES if self.plan[a][0] > self.t]
        parts = super().step({a: given[a] for a in self.agents})
        self.agents = list(NAMES)
        assert acting == [a for a in NAMES if self.plan[a][0] >= self.t]
        return parts


def test_an_agent_that_has_ended_stays_so_until_the_reset_even_if_it_is_listed():
    joint = Joint(Lingers([(2, "terminated"), (5, "truncated"), (3, "both")]))
    for _ in range(2):
        assert joint.reset(seed=0)[1]["alive"].all()
        steps = [joint.step(np.zeros(6, int)) for _ in range(5)]
        assert [info["alive"].tolist() for *_, info in steps] == [
            [True, True, True],
            [False, True, True],
            [False, True, False],
            [False, True, False],
            [False, True, False],
        ]
        assert [info["rewards"].tolist()[0] for *_, info in steps] == [-10, -10, 0, 0, 0]
        assert [truncated for *_, truncated, _ in steps] == [False] * 4 + [True]


def test_an_agents_mask_may_be_missing_after_an_episodes_last_step():
    joint = spoiled(lambda seen, reward, info: info["guard"].clear())
    joint.env.ends = [(1, "truncated")] * 3
    joint.reset(seed=0)
    *_, truncated, info = joint.step(np.zeros(6, int))
    assert truncated
    assert info["action_mask"][MASKS["guard"]].all()


class Pair(gymnasium.Env):
    """Two agents of gymnasium's tuples; the first ends after a step, both after two."""

    observation_space = Tuple([Box(0, 9, (1,)), Box(0, 9, (2,))])
    action_space = Tuple([Discrete(2), Discrete(3, start=5)])

    def __init__(self, reward=(1.0, 2.0), ends=True, masks=None):
        self.reward, self.ends, self.masks, self.got = reward, ends, masks, []

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._seen(), {} if self.masks is None else {"action_mask": self.masks}

    def step(self, action):
        assert self.action_space.contains(action)
        self.got.append(action)
        self.t += 1
        over = ([True, self.t == 2] if self.ends else self.t == 2) if isinstance(self.ends, bool) else self.ends
        return self._seen(), self.reward, over, False, {} if self.masks is None else {"action_mask": self.masks}

    def _seen(self):
        return np.full(1, self.t, np.float32), np.full(2, self.t + 4, np.float32)


def test_tuples_over_agents_may_share_a_reward_and_an_end_or_have_their_own():
    pair = Pair()
    joint = Joint(pair)
    assert joint.reset()[0].tolist() == [0, 4, 4]
    observation, reward, *_, info = joint.step(np.array([1, 2]))
    assert (observation.tolist(), reward, info["alive"].tolist()) == ([0, 5, 5], 3.0, [False, True])
    observation, reward, terminated, truncated, info = joint.step(np.array([1, 2]))
    assert (reward, info["rewards"].tolist(), terminated, truncated) == (2.0, [0.0, 2.0], True, False)
    assert pair.got == [(1, 7), (0, 7)]  # an agent that has ended does the first
    shared = Joint(Pair(reward=3.0, ends=False, masks=(np.array([1, 0]), np.array([0, 1, 1]))))
    assert shared.reset()[1]["action_mask"].tolist() == [1, 0, 0, 1, 1]
    for masks in ([[1, 0], [0, 1, 1]], ([True, False], None)):
        assert Joint(Pair(masks=masks)).reset()[1]["action_mask"].tolist() in ([1, 0, 0, 1, 1], [1, 0, 1, 1, 1])
    with pytest.raises(DataError, match="must return an action_mask for each of its 2 agents, got"):
        Joint(Pair(masks=([1, 0],))).reset()
    _, reward, terminated, _, info = shared.step(np.array([0, 1]))
    assert (reward, info["rewards"].tolist(), terminated) == (3.0, [1.5, 1.5], False)
    assert info["alive"].all()


def spoiled(change):
    def spoil(seen, reward, terminated, truncated, info):
        change(seen, reward, info)
        return seen, reward, terminated, truncated, info

    return Joint(Trio([(3, "terminated")] * 3, spoil=spoil))


def stranger():
    trio = Trio([(3, "terminated")] * 3)
    trio.spoil = lambda *parts: trio.agents.append("stranger") or parts
    return Joint(trio)


WRONG = {
    "agent stranger appeared, which is not among the environment's possible_agents": stranger,
    "returned no reward of agent pilot": lambda: spoiled(lambda seen, reward, info: reward.pop("pilot")),
    "returned no observation of agent scout": lambda: spoiled(lambda seen, reward, info: seen.pop("scout")),
    "agent guard must see 3 numbers, got 4": lambda: spoiled(lambda seen, *_: seen.update(guard=np.zeros(4))),
    r"agent guard's action_mask must have shape \(6,\), got \(2,\)": lambda: spoiled(
        lambda seen, reward, info: info["guard"].update(action_mask=[1, 1])
    ),
    r"agent guard's action_mask must have shape \(6,\), got \(2, 3\)": lambda: spoiled(
        lambda seen, reward, info: info["guard"].update(action_mask=np.ones((2, 3)))
    ),
    "agent guard must have an action_mask in every step or in none": lambda: spoiled(
        lambda seen, reward, info: info["guard"].clear()
    ),
    "agent scout must have an action_mask in every step or in none": lambda: spoiled(
        lambda seen, reward, info: info["scout"].update(action_mask=[1, 1, 1])
    ),
    "must return a reward for each of its 2 agents, got": lambda: Joint(Pair(reward=(1.0, 2.0, 3.0))),
    "must return a termination for each of its 2 agents, got": lambda: Joint(Pair(ends=[True] * 3)),
}


@each("sentence, function", WRONG.items())
def test_what_agents_should_not_return_is_refused_in_a_sentence(sentence, function):
    joint = function()
    joint.reset(seed=0)
    with pytest.raises(DataError, match=sentence):
        joint.step(np.zeros(len(joint.action_space.nvec), int))


def test_an_episode_without_agents_is_refused_before_training():
    trio = Trio()
    trio.reset = lambda **_: ({}, {}) if vars(trio).update(agents=[]) is None else None
    with pytest.raises(DataError, match="the environment's agents are none after its reset: an episode must begin"):
        Joint(trio).reset()


SCOUT, PILOT = Part("scout", 2, (3,)), Part("pilot", 1, (2, 4))


@each(
    "parts",
    [
        *(["scout", "pilot"], 2, [SCOUT], [PILOT, SCOUT]),
        [SCOUT, ("pilot", 1, (2, 4))],
        [SCOUT, PILOT._replace(observation=2)],
        [SCOUT._replace(observation=3), PILOT._replace(observation=0)],
        [SCOUT._replace(factors=(3, 2, 4)), PILOT._replace(factors=())],
        [SCOUT, PILOT._replace(name="scout")],
    ],
)
def test_parts_that_are_not_those_of_the_spaces_are_refused(parts):
    class Own(Counter):
        observation_space, action_space = Box(0, 9, (3,)), MultiDiscrete([3, 2, 4])

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

    vector = SyncVectorEnv([Own])
    vector.metadata |= {"agents": (SCOUT, PILOT)}
    assert Environments(vector).sizes.agents == (SCOUT, PILOT)
    vector.metadata |= {"agents": parts}
    with pytest.raises(
        ConfigError, match=r"^metadata\['agents'\] must hold a Part for each agent.* add up to 3 numbers"
    ):
        Environments(vector)


def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)
    return name


class Turns:
    possible_agents, agent_iter = ("a", "b"), None


UNKNOWN = {
    r"env.make.id=.env: the 'package' argument is required": lambda: make_parallel(".env", 1),
    r"env.make.id=no_such.env: No module named 'no_such'": lambda: make_parallel("no_such.env", 1),
    r"env.make.id=taugrad_turns has no parallel_env: agents .*aec_to_parallel.*env=connect_four": lambda: make_parallel(
        module("taugrad_turns", env=Turns), 1
    ),
    "those of Turns take turns: give the environment's parallel_env, or .*aec_to_parallel": lambda: Joint(Turns()),
    "must have possible_agents, object has not": lambda: Joint(object()),
    "possible_agents, which is empty": lambda: Joint(changed(Trio(), possible_agents=[])),
    r"env.make.id=lbforaging:Foraging-v0: ": lambda: make("lbforaging:Foraging-v0", 1),
    "must have a Tuple of spaces, one for each, got": lambda: make("CartPole-v1", 1),
    r"this needs mpe2: pip install 'taugrad\[mpe\]'": lambda: make_parallel("mpe2.simple_spread_v3", 1),
    r"this needs rware: pip install 'taugrad\[rware\]'": lambda: make("rware:rware-tiny-2ag-v2", 1),
}


@each("sentence, function", UNKNOWN.items())
def test_agents_that_cannot_be_made_are_refused_in_a_sentence(sentence, function):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mpe2", "rware"):
            patch.setitem(sys.modules, name, None)  # as if it were not installed
        with pytest.raises(ConfigError, match=sentence):
            function()


@each("name, value", [("time_limit", 0), ("processes", 0), ("num_envs", 0)])
def test_counts_are_positive(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*, got 0"):
        make_parallel("helpers.trio", **{"num_envs": 1} | {name: value})


# The task


def test_a_task_logs_the_returns_and_the_choices_of_each_agent(tmp_path):
    policy = task(*TRIO, "env.max_env_steps=100", "+env.make.ends=[[2,terminated],[4,truncated],[4,terminated]]")
    own = {f"{tag}/{name}" for tag in ("rollout/ep_rew_mean", "eval/mean_reward") for name in NAMES}
    assert own <= set(policy.metrics)
    fitted = trainer(tmp_path, callbacks=[Scalars()], log_every_n_steps=1)
    fitted.fit(policy)
    logged = fitted.callback_metrics
    for tag in ("rollout/ep_rew_mean", "eval/mean_reward", "eval_sampled/mean_reward"):
        assert sum(logged[f"{tag}/{name}"] for name in NAMES) == pytest.approx(logged[tag].item(), rel=1e-5)
    tags = {tag for tags in policy.charts.values() for tag in tags}
    assert own < tags
    assert {tag for tag in tags if tag.startswith("policy/action")} <= set(logged)
    for name in NAMES:
        shares = [logged[f"policy/action_0_{k}/{name}"] for k in range(FACTORS[name][0])]
        assert sum(shares) == pytest.approx(1)
        assert 1 <= logged[f"policy/action_perplexity/{name}"] <= 3
    checkpoint = {}
    policy.on_save_checkpoint(checkpoint)
    again = task(*TRIO)
    again.on_load_checkpoint(checkpoint)
    assert list(again.collector.each) == list(policy.collector.each) != []
    frames, fps = policy.film()
    assert (frames.shape, fps) == ((5, 4, 6, 3), 7)
    assert frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_only_choices_of_living_agents_count():
    policy = task(*TRIO, "+env.make.ends=[[1,terminated],[4,terminated],[4,terminated]]")
    rollout = policy.collect()
    acted = rollout.alive[:-1, :, 0] & rollout.valid
    rollout.action[..., 0] = torch.where(acted, 2, 0)
    assert policy._usage(rollout)["policy/action_0_2/scout"] == 1
    assert not rollout.reward[..., 0][~acted].any()


# Other packages, and other processes


@pytest.mark.parametrize(
    ("id", "names", "factors"),
    [
        ("mpe2.simple_spread_v3", ("agent_0", "agent_1", "agent_2"), (5, 5, 5)),
        ("mpe2.simple_speaker_listener_v4", ("speaker_0", "listener_0"), (3, 5)),
        ("pettingzoo.classic.rps.rps", ("player_0", "player_1"), (3, 3)),
        ("rware:rware-tiny-2ag-v2", ("agent_0", "agent_1"), (5, 5)),
    ],
)
def test_environments_of_other_packages_are_shown_as_they_are(id, names, factors):
    package = id.partition(":")[0].partition(".")[0]
    pytest.importorskip(package)
    environments = build(partial(make if ":" in id else make_parallel, id), 2)
    assert tuple(part.name for part in environments.sizes.agents) == names
    assert environments.sizes.factors == factors
    seen = environments.reset(3)
    step = environments.step(torch.ones(2, len(factors), dtype=torch.int64))
    assert step.reward.shape == (2, len(names))
    if ":" in id:
        raw = gymnasium.make(id, disable_env_checker=True)
        first = np.concatenate(raw.reset(seed=3)[0])
        second = np.concatenate(raw.step((1, 1))[0])
    else:
        raw = importlib.import_module(id).parallel_env()
        first = np.concatenate([np.ravel(x) for x in _flat(raw.reset(seed=3)[0], raw)])
        second = np.concatenate([np.ravel(x) for x in _flat(raw.step(dict.fromkeys(names, 1))[0], raw)])
    np.testing.assert_array_equal(seen.observation[0], first)
    np.testing.assert_array_equal(step.seen.observation[0], second)
    raw.close()
    environments.close()


def _flat(seen, raw):
    return [gymnasium.spaces.flatten(raw.observation_space(name), seen[name]) for name in raw.possible_agents]


@pytest.mark.system
def test_two_processes_give_what_one_gives_and_their_errors():
    ends = {"ends": [(2, "terminated"), (4, "truncated"), (3, "terminated")]}
    one, two = (build(partial(make_parallel, "helpers.trio", processes=n, **ends), 5) for n in (1, 2))
    action = torch.zeros(5, 6, dtype=torch.int64)
    for env in (one, two):
        env.first = env.reset(7)
        env.steps = [env.step(action) for _ in range(12)]
    for a, b in zip([one.first, *one.steps], [two.first, *two.steps], strict=True):
        for x, y in zip(flattened(a), flattened(b), strict=True):
            assert torch.equal(x, y)
    assert two.picture().shape == (4, 6, 3)
    worker = two.env._others[0].process
    two.close()
    assert worker.exitcode == 0
    failing = build(partial(make_parallel, "helpers.trio", processes=2, fails_at=3, **ends), 2)
    failing.env._own = build(partial(make_parallel, "helpers.trio", **ends), 1).env  # that does not fail
    failing.reset(0)
    for _ in range(2):
        failing.step(action[:2])
    with pytest.raises(DataError, match="the environment's step raised OSError: the radio is dead"):
        failing.step(action[:2])
    os.kill(failing.env._others[0].process.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="a process that steps environments has ended, with exit code -9"):
        failing.step(action[:2])
    failing.close()


def flattened(value):
    return [x for part in value for x in (flattened(part) if isinstance(part, tuple) else [part])]


KILLED = """
import signal
import numpy as np
from taugrad.rl.envs.agents import make_parallel
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    env = make_parallel("helpers.trio", 2, processes=2)
    env.reset(seed=0)
    print(env._others[0].process.pid, flush=True)
    while True:
        env.step(np.zeros((2, 6), int))
"""


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_survives_the_one_that_trains(how, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    paths = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": paths}
    training = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    worker = int(training.stdout.readline())
    training.send_signal(signal.Signals[how])
    try:
        training.communicate(timeout=60)
    finally:
        training.kill()
    until = time.monotonic() + 60
    while running(worker):
        assert time.monotonic() < until
        time.sleep(0.05)


def running(pid):
    """True if a process is there and no zombie that waits for its parent."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")
