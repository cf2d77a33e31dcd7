import pytest
import torch
from torch import nn

from taugrad.nets import ConvDecoder, ConvEncoder, mlp


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


def test_dropout_follows_every_activation_and_is_off_in_evaluation():
    net = mlp(6, [50, 40], 3, dropout=0.5)
    kinds = [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in net] == kinds
    x = torch.randn(2, 6)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("image_size", [[28, 28], [8, 12]])
def test_the_convolutions_halve_and_double_the_image(image_size):
    encoder, decoder = ConvEncoder(image_size, [4, 6], 10), ConvDecoder(7, [4, 6], image_size)
    assert encoder(torch.zeros(5, *image_size)).shape == (5, 10)
    assert decoder(torch.zeros(2, 5, 7)).shape == (2, 5, image_size[0] * image_size[1])
    assert decoder(torch.randn(5, 7)).min() < 0  # logits: no activation at the end
    z = torch.randn(2, 5, 7)
    torch.testing.assert_close(decoder(z)[1], decoder(z[1]))


def test_every_pixel_reaches_the_encoder_and_every_output_the_image():
    x = torch.rand(1, 8, 8, requires_grad=True)
    ConvEncoder([8, 8], [4, 6], 10, "Tanh")(x).sum().backward()
    assert (x.grad != 0).all()
    z = torch.randn(1, 7, requires_grad=True)
    decoder = ConvDecoder(7, [4, 6], [8, 8], "Tanh")
    assert all((torch.autograd.grad(decoder(z)[0, pixel], z)[0] != 0).all() for pixel in range(64))


def test_an_image_that_cannot_be_halved_gets_a_sentence():
    for build in (lambda size: ConvEncoder(size, [4, 6], 10), lambda size: ConvDecoder(7, [4, 6], size)):
        with pytest.raises(ValueError, match=r"image_size\[1\] must be a multiple of 4 for 2 convolutions, got 30"):
            build([28, 30])
