"""A convolutional trunk: the layout of pictures, its layers, and policies trained on them."""

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from helpers.cases import each
from helpers.policies import EVALUATED, SMALL, improving, task, trainer
from torch import nn

from taugrad.nets import PictureEncoder, planes
from taugrad.rl.actor import Actor, trunk
from taugrad.rl.environments import build
from taugrad.rl.envs.minatar import MinAtar
from taugrad.rl.multilinear import MultilinearActorCritic
from taugrad.rl.ppo import PPO
from taugrad.rl.spaces import Sizes, unit_of

LAST, FIRST, ONE = "channels last", "channels first", "one channel"
CONV = ["env=minatar", *SMALL, *EVALUATED, "model.trunk=conv"]
POLICY = ["model=policy", *CONV, "collection.window=4", "model.minibatches=3", "model.batch_size=16"]
PPO_ = ["model=ppo", *CONV, "model.epochs=1", "model.batch_size=16"]


@each(
    "shape, layout",
    [
        ((10, 10, 4), LAST),
        ((10, 10, 10), LAST),  # Seaquest
        ((8, 8, 111), LAST),  # chess: two equal sizes are a square's
        ((210, 160, 3), LAST),
        ((4, 84, 84), FIRST),
        ((111, 8, 8), FIRST),
        ((3, 210, 160), FIRST),
        ((6, 7, 2), LAST),
        ((84, 64), ONE),
        ((4, 10, 12, 3), LAST),
        ((4, 3, 10, 12), FIRST),
    ],
)
def test_the_shape_tells_where_the_channels_are(shape, layout):
    x = torch.randn(3, *shape)
    frames = x if len(shape) == 4 else x[:, None]  # (n, frames, ...)
    if layout == ONE:
        expected = x[:, None]
    else:
        frames = frames.permute(0, 1, 4, 2, 3) if layout == LAST else frames
        expected = torch.cat(list(frames.unbind(1)), 1)
    assert torch.equal(planes(x.flatten(1), shape), expected)


@each("shape", [(10, 10, 4), (4, 40, 36), (3, 3)])
def test_the_encoder_is_its_layers_by_hand_in_any_memory_order(shape):
    encoder = PictureEncoder(shape, 5).double()
    layers = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    kinds = {(10, 10, 4): [(4, 16, 3, 1)], (3, 3): [(1, 16, 3, 1)]}
    expected = kinds.get(shape, [(4, 16, 4, 2), (16, 32, 4, 2), (32, 64, 3, 1)][: len(layers)])
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in layers] == expected
    x = torch.randn(2, 3, math.prod(shape), dtype=torch.float64)
    y = planes(x.flatten(0, 1), shape).clone(memory_format=torch.contiguous_format)
    for c in layers:  # the definition: a sum over every patch
        patches = nn.functional.unfold(y, c.kernel_size, stride=c.stride)
        sides = [(side - c.kernel_size[0]) // c.stride[0] + 1 for side in y.shape[2:]]
        y = (c.weight.flatten(1) @ patches + c.bias[:, None]).relu().unflatten(-1, sides)
    last = encoder.last
    by_hand = (y.permute(0, 2, 3, 1).flatten(1) @ last.weight.T + last.bias).relu().unflatten(0, (2, 3))
    torch.testing.assert_close(encoder(x), by_hand)
    encoder(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@each(
    "shape, filters",
    [((84, 84), [16, 32, 64, 64]), ((16, 99), [16]), ((17, 17, 3), [16, 32]), ((700, 700), [16, 32] + 5 * [64])],
)
def test_larger_pictures_are_halved_until_their_smaller_side_is_small(shape, filters):
    with torch.device("meta"):
        encoder = PictureEncoder(shape, 8)
    assert [layer.out_channels for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)] == filters
    assert encoder.last.in_features <= 64 * 14 * 14 or shape == (16, 99)


def test_an_actor_of_planes_ends_like_every_actor():
    sizes = Sizes((10, 10, 4), (3, 2))
    front, features, hidden, _ = trunk("conv", sizes, [32, 16])
    actor = Actor(features, sizes.factors, hidden, front)
    logits = actor(torch.randn(2, 5, 400))
    assert logits.shape == (2, 5, 2, 3)
    assert logits[..., 1, 2].isneginf().all()
    assert logits[..., :2].abs().max() < 0.2  # nearly uniform at first
    conv = front.convolutions[0].weight.flatten(1)
    torch.testing.assert_close(conv @ conv.T, 2 * torch.eye(16))  # orthogonal, of gain sqrt 2


@each(
    "kind, hidden, shape, sentence",
    [
        (MultilinearActorCritic, [64], (4,), r"trunk=conv cannot be used with these observations: .*got shape \(4,\)"),
        (PPO, [64], (9, 2), "trunk=conv cannot.*: the sides of a picture must be at least 3, got 9 x 2"),
        (PPO, [], (9, 9), "hidden must have a layer for trunk=conv"),
        (MultilinearActorCritic, [], (9, 9), "hidden must have a layer for trunk=conv"),
    ],
)
def test_a_trunk_that_cannot_be_is_refused_in_a_sentence(kind, hidden, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(trunk="conv", hidden=hidden).build(Sizes(shape, (2,)))


@each("kind", [MultilinearActorCritic, PPO])
def test_another_trunk_is_refused_in_a_sentence(kind):
    with pytest.raises(ValueError, match="trunk must be mlp or conv, got cnn"):
        kind(trunk="cnn")


@pytest.mark.parametrize("overrides", [POLICY, PPO_], ids=["policy", "ppo"])
def test_every_network_learns_from_planes_and_a_checkpoint_restores_it(overrides, tmp_path):
    model, improve = improving(task(*overrides))
    before = {name: p.detach().clone() for name, p in model.agent.named_parameters()}
    improve()
    still = {name for name, p in model.agent.named_parameters() if torch.equal(p, before[name])}
    assert len([name for name in before if "convolutions" in name]) == 4  # weights and biases of two
    assert not still
    fitted = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    fitted.fit(model)
    fitted.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    other = task(*overrides)
    other.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    x = (torch.rand(7, 400) < 0.2).float()
    assert torch.equal(model.agent.policy.actor(x), other.agent.policy.actor(x))


def test_stacked_frames_of_planes_are_one_picture():
    def make(num_envs):
        return SyncVectorEnv([lambda: FrameStackObservation(MinAtar("breakout"), 2)] * num_envs)

    sizes = build(make, 2).sizes
    assert sizes.shape == (2, 10, 10, 4)
    front = trunk("conv", sizes, [8]).front
    assert front.convolutions[0].in_channels == 8
    assert front(torch.zeros(3, 800)).shape == (3, 8)


def test_gymnasiums_wrappers_stack_frames_from_a_config():
    stack = "{_target_: gymnasium.wrappers.FrameStackObservation, _partial_: true, stack_size: 4}"
    one = task("model=ppo", "env=acrobot", *SMALL, f"+env.make.wrappers=[{stack}]", "model.trunk=conv")
    assert one.input_size == (24,)
    assert one.agent.front.shape == (4, 6)


@each("normalize, expected", [(False, 0.2), (True, 0.0)])
def test_pictures_of_integers_are_divided_by_their_largest_number_or_normalized(normalize, expected):
    flat = Box(0, 255, (8, 8, 3), np.uint8)
    sizes = Sizes(flat.shape, (2,), unit=unit_of(flat))
    for kind in (MultilinearActorCritic, PPO):
        policy = kind(trunk="conv", normalize=normalize).build(sizes).policy
        x = torch.full((4, 192), 51.0)
        policy.count(x)
        torch.testing.assert_close(policy.normalized(x), torch.full((4, 192), expected))
        vector = kind(normalize=False).build(sizes).policy  # numbers of a vector may mean anything
        assert torch.equal(vector.normalized(x), x)
