import pytest
import torch
from helpers.backends import once
from helpers.cases import each
from helpers.oracles import relaxed_gradient, textbook_softmax
from torch.autograd import gradcheck, gradgradcheck

from taugrad.ops.softmax import softmax, softmax_backward, softmax_backward_by_jacobian, softmax_jacobian

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-14}


@each("dtype, tolerance", DTYPES.items())
@each("shape", [(5,), (7, 5), (2, 3, 5)])
@each("tau", [0.1, 1.0, 10.0])
def test_value_is_the_textbook_softmax_in_the_inputs_dtype(shape, tau, dtype, tolerance):
    x = torch.randn(shape).to(dtype)
    for dim in range(-len(shape), len(shape)):
        y = softmax(x, tau, dim)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), textbook_softmax(x, tau, dim), rtol=0, atol=tolerance)


@each("tau_dtype", [torch.float32, torch.float64])
@each("dtype", list(DTYPES))
def test_a_tensor_tau_gives_what_its_number_gives(dtype, tau_dtype):
    x = torch.randn(4, 5).to(dtype)
    assert torch.equal(softmax(x, torch.tensor(0.5, dtype=tau_dtype)), softmax(x, 0.5))


@each("dim", [0, 1, 2, -1])
def test_gradients_to_x_and_tau_of_every_order_and_mode_match_finite_differences(dim):
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    call = lambda x, tau: softmax(x, tau, dim)  # noqa: E731
    assert gradcheck(call, (x, tau), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, (x, tau), check_fwd_over_rev=True)


def test_gradcheck_notices_a_wrong_backward():
    wrong = lambda y: (y * (1 - y)).detach() * torch.ones(4, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(lambda x: softmax(x) + wrong(softmax(x)) * x, (x,))


@each("dim", [0, 1, -1])
def test_efficient_backward_is_the_jacobian_product(dim):
    y = torch.randn(3, 4, 5, dtype=torch.float64).softmax(dim)
    grad = torch.randn_like(y)
    for tau in (0.3, torch.tensor(2.0, dtype=torch.float64)):
        torch.testing.assert_close(
            softmax_backward(grad, y, tau, dim), softmax_backward_by_jacobian(grad, y, tau, dim), rtol=0, atol=1e-15
        )


def test_jacobian_is_what_autograd_finds_by_itself():
    x = torch.randn(3, 4, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(lambda x: torch.softmax(x / 0.7, 0), x)
    ours = softmax_jacobian(torch.softmax(x / 0.7, 0), 0.7, dim=0)
    for column in range(4):
        torch.testing.assert_close(ours[column], dense[:, column, :, column])


@each("dtype, tolerance", DTYPES.items())
def test_gradient_in_every_dtype_is_near_the_float64_oracle(dtype, tolerance):
    x = torch.randn(6, 5).to(dtype).requires_grad_()
    weights = torch.randn(6, 5).to(dtype)
    (gradient,) = torch.autograd.grad((softmax(x, 0.5) * weights).sum(), x)
    assert gradient.dtype == dtype
    expected = relaxed_gradient(x.detach(), weights, 0.5)
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=8 * tolerance)


def test_only_the_output_is_saved_for_backward():
    saved = []
    x = torch.randn(32, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = softmax(x, 0.5)
    assert [t.data_ptr() for t in saved] == [y.data_ptr()]


def test_non_contiguous_input_and_gradient_change_nothing():
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    weights = torch.randn(3, 4, 5, dtype=torch.float64)
    view = x.transpose(0, 2).requires_grad_()
    copy = x.transpose(0, 2).contiguous().requires_grad_()
    for dim in (0, 1, 2):
        gradients = [torch.autograd.grad((softmax(t, 0.5, dim) * weights).sum(), t)[0] for t in (view, copy)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)


def test_a_masked_class_has_zero_probability_and_zero_gradient_also_to_tau():
    x = torch.tensor([[0.3, -torch.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = softmax(x, tau)
    dx, dtau = torch.autograd.grad(y[0, 0], (x, tau), create_graph=True)
    short = x.detach()[:, [0, 2]].requires_grad_()
    dshort, dtau_short = torch.autograd.grad(softmax(short, tau)[0, 0], (short, tau))
    assert y[0, 1] == 0
    assert dx[0, 1] == 0
    torch.testing.assert_close(dx[:, [0, 2]], dshort)
    torch.testing.assert_close(dtau, dtau_short)
    second = torch.autograd.grad(dx[0, 0] + dtau, (x, tau))
    assert all(torch.isfinite(g).all() for g in second)


def test_vmap_over_rows_and_over_tau_equals_the_loop():
    x = torch.randn(6, 5, dtype=torch.float64)
    taus = torch.linspace(0.2, 2.0, 6, dtype=torch.float64)
    rows = torch.func.vmap(softmax)(x, taus)
    torch.testing.assert_close(rows, torch.stack([softmax(x[i], taus[i]) for i in range(6)]))
    loss = lambda x, tau: softmax(x, tau)[0]  # noqa: E731
    gx, gtau = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(x, taus)
    for i in range(6):
        expected = torch.func.grad(loss, argnums=(0, 1))(x[i], taus[i])
        torch.testing.assert_close((gx[i], gtau[i]), expected)


def test_jvp_equals_the_jacobian_product():
    x, t = torch.randn(2, 4, dtype=torch.float64).unbind()
    y, tangent = torch.func.jvp(lambda x: softmax(x, 0.5), (x,), (t,))
    torch.testing.assert_close(tangent, softmax_jacobian(y, 0.5) @ t)


@once
@pytest.mark.command
def test_compiles_without_a_graph_break_and_once_for_every_tensor_tau():
    torch.compiler.reset()
    compiled = torch.compile(softmax, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    for value, stance in ((0.5, "default"), (0.7, "fail_on_recompile"), (1.3, "fail_on_recompile")):
        tau = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        weights = torch.randn(4, 5, dtype=torch.float64)
        expected = torch.autograd.grad((softmax(x, tau) * weights).sum(), (x, tau))
        with torch.compiler.set_stance(stance):
            gradients = torch.autograd.grad((compiled(x, tau) * weights).sum(), (x, tau))
        torch.testing.assert_close(gradients, expected)


def test_extreme_logits_and_temperatures_stay_finite():
    for dtype in DTYPES:
        x = torch.tensor([[1e4, -1e4, 0.0], [3.0, 3.0, -torch.inf]]).to(dtype).requires_grad_()
        for tau in (1e-4, 1.0, 1e4):
            y = softmax(x, tau)
            (gradient,) = torch.autograd.grad(y[:, 0].sum(), x)
            assert torch.isfinite(y).all()
            assert torch.isfinite(gradient).all()


@each("row", [[float("nan"), 0.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
def test_a_row_without_a_distribution_is_nan_and_leaves_others_alone(row):
    y = softmax(torch.tensor([row, [0.0, 0.0]]))
    assert y[0].isnan().all()
    assert torch.equal(y[1], torch.tensor([0.5, 0.5]))


@once
@each(
    "x, tau, dim, error, sentence",
    [
        (torch.zeros(2, dtype=torch.int64), 1.0, -1, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ([0.0], 1.0, -1, TypeError, "x must be a floating-point tensor, got list"),
        (torch.zeros(()), 1.0, -1, ValueError, "x must have a dimension of classes"),
        (torch.zeros(2, 0), 1.0, -1, ValueError, r"at least one class along dim -1, got shape \(2, 0\)"),
        (torch.zeros(2), 1.0, 1, IndexError, r"dim must be in \[-1, 0\] for x of shape \(2,\), got 1"),
        (torch.zeros(2), 0.0, -1, ValueError, "tau must be a positive finite number, got 0.0"),
        (torch.zeros(2), -1, -1, ValueError, "tau must be a positive finite number, got -1"),
        (torch.zeros(2), float("nan"), -1, ValueError, "tau must be a positive finite number, got nan"),
        (torch.zeros(2), float("inf"), -1, ValueError, "tau must be a positive finite number, got inf"),
        (torch.zeros(2), "1", -1, TypeError, "tau must be a number or a floating-point tensor, got str"),
        (torch.zeros(2), True, -1, TypeError, "tau must be a number or a floating-point tensor, got bool"),
        (torch.zeros(2), torch.ones(2), -1, ValueError, r"tau must have one value, or one for each row.* got \(2,\)"),
    ],
)
def test_bad_input_gets_a_sentence_that_names_the_argument(x, tau, dim, error, sentence):
    with pytest.raises(error, match=sentence):
        softmax(x, tau, dim)


def test_a_tensor_tau_that_is_not_positive_gives_nan():
    assert softmax(torch.zeros(3), torch.tensor(0.0)).isnan().all()
    assert softmax(torch.zeros(3), torch.tensor(-1.0)).isnan().all()
