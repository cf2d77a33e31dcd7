import pytest
import torch
from torch import nn

from taugrad.nets import mlp


def test_an_mlp_maps_the_last_dimension_through_its_hidden_sizes():
    net = mlp(6, [5, 4], 3, "SiLU")
    assert [type(layer) for layer in net] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert net(torch.zeros(2, 7, 6)).shape == (2, 7, 3)


def test_an_mlp_without_hidden_layers_is_linear():
    net = mlp(6, [], 3)
    x = torch.randn(2, 6)
    torch.testing.assert_close(net(x) + net(-x), 2 * net(torch.zeros(2, 6)))


def test_bad_sizes_and_activations_get_a_sentence():
    with pytest.raises(ValueError, match=r"the sizes of an mlp must be at least 1, got \[6, 0, 3\]"):
        mlp(6, [0], 3)
    for name in ("relu", "functional", "Nope"):
        with pytest.raises(ValueError, match=f"activation must be the name of a module of torch.nn.* got {name}"):
            mlp(6, [], 3, name)
