"""Gates: their distribution in closed form, their cost, their gradient, and what they refuse."""

import copy

import pytest
import torch
from helpers.cases import each
from helpers.estimators import HARD, PATHWISE
from helpers.samples import FALSE_FAILURE, distribution_p_value, frequencies_p_value

from taugrad.estimators import RLOO, GumbelSoftmax, STGumbelSoftmax, StraightThrough
from taugrad.layers import BinaryGate, HardConcreteGate

GATES = [BinaryGate(STGumbelSoftmax()), BinaryGate(StraightThrough()), HardConcreteGate()]


@each("estimator", HARD)
def test_a_binary_gate_is_open_as_often_as_its_expected_cost_says(estimator):
    gate, n = BinaryGate(estimator), 4000
    for logit in (-2.0, 0.5):
        z = gate(torch.full((n,), logit), 0.7)
        p = gate.expected_l0(torch.tensor(logit))
        counts, expected = torch.stack([z.sum(), n - z.sum()]), torch.stack([p, 1 - p])
        assert ((z == 0) | (z == 1)).all()
        assert frequencies_p_value(counts, expected) > FALSE_FAILURE
    assert frequencies_p_value(counts, expected.flip(0)) < FALSE_FAILURE  # the test notices gates that are swapped


@each("logit, tau", [(-1.0, 2 / 3), (0.0, 0.3), (2.0, 1.0)])
def test_a_hard_concrete_gate_has_the_atoms_and_the_density_of_the_paper(logit, tau):
    gate, n = HardConcreteGate(), 20_000
    a = torch.tensor(logit, dtype=torch.float64)
    z = gate(a.expand(n), tau)
    assert z.min() == 0
    assert z.max() == 1

    def cdf(value):  # P(s < c) = sigma(tau log(c / (1 - c)) - a) for the s that is stretched to `value`
        c = (value - gate.gamma) / (gate.zeta - gate.gamma)
        return torch.sigmoid(tau * torch.logit(c) - a)

    open_at_all, all_open = gate.expected_l0(a, tau), 1 - cdf(torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(open_at_all, 1 - cdf(torch.tensor(0.0, dtype=torch.float64)))
    counts = torch.stack([(z == 0).sum(), (z == 1).sum(), ((z > 0) & (z < 1)).sum()])
    expected = torch.stack([1 - open_at_all, all_open, open_at_all - all_open])
    assert frequencies_p_value(counts, expected) > FALSE_FAILURE
    wrong = torch.sigmoid(a)  # the cost of a Bernoulli gate
    assert frequencies_p_value(torch.stack([n - counts[0], counts[0]]), torch.stack([wrong, 1 - wrong])) < FALSE_FAILURE
    low, high = cdf(torch.tensor([0.0, 1.0], dtype=torch.float64))
    inner = z[(z > 0) & (z < 1)]
    between = lambda v: ((cdf(torch.as_tensor(v)) - low) / (high - low)).numpy()  # noqa: E731
    assert distribution_p_value(inner, between) > FALSE_FAILURE


def test_the_gradient_of_the_expected_cost_is_exact_and_of_hard_concrete_gates_unbiased():
    a = torch.randn(5, dtype=torch.float64, requires_grad=True)
    gate = HardConcreteGate()
    assert torch.autograd.gradcheck(gate.expected_l0, a)
    assert torch.autograd.gradcheck(BinaryGate(StraightThrough()).expected_l0, a)
    # d E z / dl, by differences of the mean that the cdf gives: E z = int_0^1 P(z > v) dv.
    v = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    at = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    tail = torch.sigmoid(at - 2 / 3 * torch.logit((v + 0.1) / 1.2))
    (exact,) = torch.autograd.grad(torch.trapezoid(tail, v), at)
    n = 40_000
    logits = torch.full((n,), 0.4, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(gate(logits).sum(), logits)
    assert abs(g.mean() - exact) < 6.2 * g.std() / n**0.5  # 6.2 standard errors: false at below 1e-9
    assert abs(g.mean() - 1.1 * exact) > 6.2 * g.std() / n**0.5


def test_a_binary_gate_has_the_gradient_of_its_estimator_over_two_classes():
    a, w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    for estimator in PATHWISE:
        draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        z = BinaryGate(estimator)(a, 0.6, generator=draw())
        two = torch.stack([a, torch.zeros_like(a)], -1)
        expected = estimator.sample(two, 0.6, generator=draw())[..., 0]
        assert torch.equal(z, expected)
        torch.testing.assert_close(*(torch.autograd.grad((s * w).sum(), a)[0] for s in (z, expected)))
    # straight-through's is sigma'(a) whatever was drawn
    (g,) = torch.autograd.grad((BinaryGate(StraightThrough())(a) * w).sum(), a)
    torch.testing.assert_close(g, w * torch.sigmoid(a) * torch.sigmoid(-a))


@each("gate", GATES)
def test_a_masked_gate_stays_closed_without_gradient_and_evaluation_is_fixed(gate):
    gate = copy.deepcopy(gate)
    a = torch.tensor([-torch.inf, 1.0, 30.0], requires_grad=True)
    z = gate(a, torch.tensor([0.5, 0.6, 0.7]))
    assert z[0] == 0
    (g,) = torch.autograd.grad((z * torch.randn(3)).sum() + gate.expected_l0(a).sum(), a)
    assert g[0] == 0
    assert torch.isfinite(g).all()
    gate.eval()
    assert torch.equal(gate(a), gate(a))
    assert gate(a)[0] == 0
    assert gate(a)[2] == 1


@each("gate", GATES[1:])
def test_gates_work_in_every_dtype_compiled_exported_and_on_devices_without_values(gate):
    for mode in (True, False):
        gate = copy.deepcopy(gate).train(mode)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            z = gate(torch.randn(6, dtype=dtype), 0.5)
            assert z.dtype == dtype
            assert ((z >= 0) & (z <= 1)).all()
        assert gate(torch.zeros(3, device="meta")).shape == (3,)
        with torch.autocast("cpu", torch.bfloat16):
            assert gate(torch.zeros(3)).dtype == torch.float32
        compiled = torch.compile(gate, fullgraph=True, backend="eager")
        assert compiled(torch.randn(6, requires_grad=True)).shape == (6,)
    program, x = torch.export.export(gate, (torch.randn(6),)).module(), torch.randn(6)
    assert torch.equal(program(x), gate(x))


def test_what_a_gate_cannot_take_gets_a_sentence():
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator"):
        BinaryGate(RLOO(2))
    with pytest.raises(ValueError, match=r"gamma must be a finite number below 0, got 0\.1"):
        HardConcreteGate(gamma=0.1)
    with pytest.raises(ValueError, match=r"zeta must be a finite number above 1, got 1\.0"):
        HardConcreteGate(zeta=1.0)
    with pytest.raises(TypeError, match="gamma must be a number, got 'a'"):
        HardConcreteGate("a")
    with pytest.raises(ValueError, match=r"tau must be a positive finite number, got -1\.0"):
        HardConcreteGate().expected_l0(torch.zeros(2), -1.0)
    for gate in (BinaryGate(GumbelSoftmax()), HardConcreteGate()):
        for mode in (True, False):
            gate.train(mode)
            with pytest.raises(ValueError, match=r"tau must be a positive finite number, got -1\.0"):
                gate(torch.zeros(2), -1.0)
            with pytest.raises(ValueError, match=r"logits must have .*no NaN or \+inf"):
                gate(torch.tensor([0.0, torch.nan]))
            with pytest.raises(ValueError, match=r"logits must have .*no NaN or \+inf"):
                gate(torch.tensor([0.0, torch.inf]))
            with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
                gate(torch.tensor([0]))
    assert repr(BinaryGate(STGumbelSoftmax())) == "BinaryGate(STGumbelSoftmax())"
    assert repr(HardConcreteGate()) == "HardConcreteGate(gamma=-0.1, zeta=1.1)"
