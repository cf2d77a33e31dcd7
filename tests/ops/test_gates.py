import pytest
import torch
from helpers.backends import by_torch_alone
from helpers.cases import each
from torch import Tensor

from taugrad.ops.gates import gate_polynomials, gates, truth_table

DOUBLE = torch.float64


def layer(inputs: int, n: int, batch: int, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, c = torch.randn(inputs, batch, dtype=dtype), torch.randn(n, 4, dtype=dtype)
    return x.requires_grad_(), c.requires_grad_(), *torch.randint(inputs, (2, n)).unbind(0)


def dense(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The layer by selection matrices, (gates, inputs)."""
    A, B = (torch.nn.functional.one_hot(index, len(x)).to(x.dtype) @ x for index in (a, b))
    return torch.einsum("kgj,gk->gj", torch.stack([torch.ones_like(A), A, B, A * B]), c)


def test_the_polynomials_are_the_sixteen_functions_of_two_bits():
    bits = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    every = torch.zeros(16, dtype=torch.long)
    outputs = gates(bits, gate_polynomials(), every, every + 1)
    assert torch.equal(outputs, truth_table())
    assert len({tuple(row) for row in outputs.tolist()}) == 16
    a, b = bits.bool()
    named = {0: a & ~a, 1: ~a & ~b, 3: ~a, 5: ~b, 6: a ^ b, 7: ~(a & b), 8: a & b, 9: a == b, 10: b, 12: a, 14: a | b}
    for number, function in named.items():
        assert torch.equal(outputs[number], function.float())


@pytest.mark.usefixtures("backend")
@each("batch", [1, 8, 100, 130])
@each("threads", [1, 2])
@each("dtype", [torch.float32, DOUBLE])
def test_a_layer_and_its_gradients_are_those_of_selection_matrices(batch, threads, dtype):
    """Check it also where inputs are shared, a gate takes one twice, and the batch fills no vector."""
    x, c, a, b = layer(5, 40, batch, dtype)
    b[:3] = a[:3]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = gates(x, c, a, b)
        found = torch.autograd.grad(y, (x, c), weight := torch.randn_like(y))
        (alone,) = torch.autograd.grad(gates(x.detach(), c, a, b), c, weight)
    finally:
        torch.set_num_threads(before)
    expected = dense(x, c, a, b)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, c), weight))
    torch.testing.assert_close(alone, found[1])


def test_many_threads_each_take_a_share_of_the_batch():
    x, c, a, b = layer(300, 400, 150)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = gates(x, c, a, b)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, c))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


@pytest.mark.usefixtures("backend")
def test_its_second_derivatives_are_right():
    x, c, a, b = layer(3, 4, 5)
    assert torch.autograd.gradcheck(lambda x, c: gates(x, c, a, b), (x, c))
    assert torch.autograd.gradgradcheck(lambda x, c: gates(x, c, a, b), (x, c))


def test_transforms_strides_and_indices_of_other_types_give_the_same():
    x, c, a, b = layer(6, 9, 12)
    expected = gates(x, c, a, b)
    turned = gates(x.detach().t().contiguous().t(), c, torch.stack([a, a], 1)[:, 0], b.int())
    torch.testing.assert_close(turned, expected)
    many = torch.func.vmap(lambda c: gates(x, c, a, b))(torch.stack([c, 2 * c]))
    torch.testing.assert_close(many, torch.stack([expected, 2 * expected]))
    with by_torch_alone():
        torch.testing.assert_close(gates(x, c, a, b), expected)
    assert gates(*(part.detach().to("meta") for part in (x, c, a, b))).shape == (9, 12)
    assert gates(x.half(), c.half(), a, b).dtype == torch.float16
    assert gates(x[:, :0], c, a, b).shape == (9, 0)
    assert gates(x, c[:0], a[:0], b[:0]).shape == (0, 12)


@each(
    "change, error, sentence",
    [
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(inputs, batch\), got \(3,\)"),
        ({"c": torch.zeros(4, 3)}, ValueError, r"c must have shape \(gates, 4\), got \(4, 3\)"),
        ({"a": torch.zeros(4)}, TypeError, "a must hold integers, got torch.float32"),
        (
            {"b": torch.zeros(3, dtype=torch.long)},
            ValueError,
            r"b must have shape \(4,\), one input a gate, got \(3,\)",
        ),
        ({"a": torch.tensor([0, 1, 5, 0])}, ValueError, "a must hold rows of x, 0 to 4, got 5"),
        ({"b": torch.tensor([0, -1, 0, 0])}, ValueError, "b must hold rows of x, 0 to 4, got -1"),
    ],
)
def test_bad_arguments_get_one_sentence(change, error, sentence):
    right = dict(zip("xcab", layer(5, 4, 2), strict=True))
    with pytest.raises(error, match=sentence):
        gates(**right | change)
