"""The steps of the multilinear actor-critic's policy over a training."""

import torch

from taugrad.rl.algorithm import Clock
from taugrad.rl.multilinear import MultilinearActorCritic, MultilinearAgent
from taugrad.rl.rollouts import Window
from taugrad.rl.spaces import Sizes

SIZES = Sizes((3,), (2, 2))


def test_the_policy_moves_less_the_less_is_left_of_the_training():
    # Rewards of noise teach nothing, but Adam takes its steps all the same; the learning rate is equal at both ends.
    moved = []
    for steps in (0, 90):
        torch.manual_seed(0)
        agent = MultilinearActorCritic(hidden=(16,), batch_size=32, ent_coef=0.0, kl_falls=True).build(SIZES)
        window = noise(Window(4, 8, 4, SIZES), agent)
        optimizer = torch.optim.Adam(agent.parameters(), lr=2e-2)
        terms = [agent.improve(window, optimizer, Clock(steps, 100)) for _ in range(12)]
        moved.append(torch.stack([term["train/approx_kl"] for term in terms[2:]]).mean().item())
    assert moved[1] < moved[0] / 3  # at a tenth of the KL's target; of five seeds the least ratio was 4.7


def noise(window: Window, agent: MultilinearAgent) -> Window:
    """Fill the window with normal observations and rewards, and with the agent's own actions."""
    for _ in range(window.capacity):
        rollout = window.oldest()
        rollout.observation.normal_()
        rollout.reward.normal_()
        rollout.valid.fill_(True)
        rollout.mask.fill_(True)
        for t in range(len(rollout.reward)):
            rollout.action[t], rollout.log_mu[t] = (x.detach() for x in agent.policy.act(rollout.observation[t]))
    return window
