"""The steps of the multilinear actor-critic's policy over a training."""

import torch

from taugrad.rl.algorithm import Clock
from taugrad.rl.multilinear import MultilinearActorCritic, MultilinearAgent
from taugrad.rl.rollouts import Window


def test_the_policy_moves_less_the_less_is_left_of_the_training():
    # Rewards of noise teach nothing, but Adam takes its steps all the same; the learning rate is equal at both ends.
    moved = []
    for steps in (0, 90):
        torch.manual_seed(0)
        agent = MultilinearActorCritic(hidden=(16,), batch_size=32, ent_coef=0.0).build(3, (2, 2))
        window = noise(Window(4, 8, 4, 3, 2), agent)
        optimizer = torch.optim.Adam(agent.parameters(), lr=2e-2)
        terms = [agent.improve(window, optimizer, Clock(steps, 100)) for _ in range(12)]
        moved.append(torch.stack([term["train/approx_kl"] for term in terms[2:]]).mean().item())
    assert moved[1] < moved[0] / 3  # at a tenth of the KL's target; of five seeds the least ratio was 4.7


def test_the_advantages_scale_rises_at_once_and_falls_slowly_to_a_floor():
    agent = MultilinearActorCritic(hidden=(8,)).build(3, (2,))
    for spread, expected in ((1.0, 1.0), (5.0, 5.0), (0.0, 0.99 * 5.0), (0.0, 0.99**2 * 5.0)):
        agent._adapt_scale(torch.tensor(spread))
        torch.testing.assert_close(agent.scale, torch.tensor(expected))
    for _ in range(300):  # 0.99^300 = 0.05
        agent._adapt_scale(torch.tensor(1e-3))
    torch.testing.assert_close(agent.scale, torch.tensor(0.2 * 5.0))
    agent._adapt_scale(torch.tensor(2.0))
    torch.testing.assert_close(agent.scale, torch.tensor(2.0))


def test_the_noise_of_perfect_play_does_not_become_a_target_of_size_one():
    torch.manual_seed(0)
    agent = MultilinearActorCritic(hidden=(16,), gamma=0.0).build(3, (2,))
    window = noise(Window(4, 8, 4, 3, 1), agent)
    for spread in (100.0, *[1.0] * 300):
        agent._adapt_scale(torch.tensor(spread))
    *_, clipped, _ = agent._targets(window)
    assert clipped.square().mean().sqrt() < 0.1  # advantages near 1 in units of 20


def noise(window: Window, agent: MultilinearAgent) -> Window:
    """Fill the window with normal observations and rewards, and with the agent's own actions."""
    for _ in range(window.capacity):
        rollout = window.oldest()
        rollout.observation.normal_()
        rollout.reward.normal_()
        rollout.valid.fill_(True)
        for t in range(len(rollout.reward)):
            rollout.action[t], rollout.log_mu[t] = (x.detach() for x in agent.policy.act(rollout.observation[t]))
    return window
