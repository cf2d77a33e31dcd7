"""Use in place of torch's function: layouts, temperatures, tracers, compilers, exporters, devices without values."""

import copy
import functools
import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.backends import by_torch_alone
from helpers.cases import each
from helpers.oracles import relaxed_gradient, textbook_softmax
from helpers.samples import generator
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import taugrad
from taugrad import bounds
from taugrad.estimators import (
    REBAR,
    RLOO,
    ZGR,
    DecoupledSTGumbelSoftmax,
    Enumeration,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Pathwise,
    ReinMax,
    ReinMaxRao,
    STGumbelSoftmax,
    StraightThrough,
)
from taugrad.layers import OneHotSample
from taugrad.ops import categorical, embedding, gumbel, noise, permutations, softmax, subsets

SOFT = [GumbelSoftmax()]
TAUGHT = [STGumbelSoftmax(), GumbelRao(draws=2), StraightThrough(), GappedStraightThrough()]  # tau has a gradient
PATHWISE = [*SOFT, *TAUGHT, DecoupledSTGumbelSoftmax(), ReinMax()]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


# Layout


def layouts() -> list[Tensor]:
    last, first = torch.channels_last, torch.contiguous_format
    images = [torch.randn(2, 3, 4, 5).contiguous(memory_format=f) for f in (first, last)]
    odd = [torch.randn(2, 6, 4, 5).contiguous(memory_format=last)[:, ::2], torch.randn(5, 3, 4, 2).permute(3, 1, 2, 0)]
    plain = [torch.randn(5), torch.randn(10)[::2], torch.randn(4, 5), torch.randn(5, 4).t(), torch.randn(2, 4, 5)]
    return [*plain, *images, *odd, torch.randn(1, 5).expand(4, 5), torch.randn(3, 0, 4), torch.randn(2, 5, 4).mT]


@pytest.mark.usefixtures("backend")
@each("call", ["soft", "hard", "softmax"])
def test_results_and_gradients_have_torchs_strides_for_every_layout_and_dim(call):
    torchs, ours = {
        "soft": (F.gumbel_softmax, taugrad.gumbel_softmax),
        "hard": (lambda x, tau, dim: F.gumbel_softmax(x, tau, True, dim=dim), None),
        "softmax": (lambda x, tau, dim: torch.softmax(x / tau, dim), softmax.softmax),
    }[call]
    ours = ours or (lambda x, tau, dim: taugrad.gumbel_softmax(x, tau, True, dim=dim))
    for logits in layouts():
        for dim in range(logits.ndim):
            if logits.shape[dim] == 0:
                continue
            found = []
            for function in (torchs, ours):
                leaf = logits.detach().requires_grad_()
                y = function(leaf, 0.5, dim=dim)
                (dx,) = torch.autograd.grad((y.mT if y.ndim > 1 else y).square().sum(), leaf)
                found.append((y.stride(), dx.stride(), y.dtype))
            assert found[0] == found[1], (logits.stride(), dim)


@pytest.mark.usefixtures("backend")
@each("dtype", [torch.bfloat16, torch.float32])
def test_every_sample_along_another_dim_can_be_viewed_and_is_that_of_the_last(dtype):
    logits = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
    calls = [lambda x, dim, g, e=e: e.sample(x, 0.5, dim, generator=g) for e in PATHWISE]
    calls += [lambda x, dim, g: gumbel.gumbel_max(x, dim, generator=g)]
    calls += [lambda x, dim, g: OneHotSample(ReinMax(), dim)(x, 0.5, generator=g)]
    for call in calls:
        leaf = logits.detach().requires_grad_()
        y = call(leaf, 1, generator())
        assert y.dtype is dtype
        assert y.is_contiguous()
        torch.testing.assert_close(y.movedim(1, -1), call(logits.movedim(1, -1), -1, generator()))
        if y.requires_grad:
            weights = torch.randn_like(y)
            (dx,) = torch.autograd.grad((y * weights).sum(), leaf)
            rows = logits.movedim(1, -1).detach().requires_grad_()
            (expected,) = torch.autograd.grad((call(rows, -1, generator()) * weights.movedim(1, -1)).sum(), rows)
            torch.testing.assert_close(dx.movedim(1, -1), expected)
    k_hot = subsets.gumbel_k_hot(logits, 2, 0.5, 1)
    assert k_hot.is_contiguous()
    assert torch.equal(k_hot.sum(1), torch.full((2, 4, 5), 2, dtype=dtype))
    assert subsets.gumbel_top_k(logits, 2, 1).is_contiguous()
    assert gumbel.gumbel_argmax(logits, 1).is_contiguous()


# Temperatures


ROWS = [  # of tau, and the dimension of the classes of logits (3, 2, 4)
    ((1,), -1),
    ((3, 1, 1), -1),
    ((2, 1), -1),
    ((3, 2, 1), -1),
    ((3, 1, 4), 1),
    ((4,), 1),
    ((1, 4), 0),
]


@pytest.mark.usefixtures("backend")
@each("shape, dim", ROWS)
def test_a_temperature_a_row_is_the_dense_oracles_of_each_row(shape, dim):
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    tau = (0.3 + torch.rand(shape, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(3, 2, 4, dtype=torch.float64)
    rows, taus = logits.detach().movedim(dim, -1), tau.detach().expand(3, 2, 4).movedim(dim, -1)[..., 0]
    g = noise.gumbel_noise(rows, generator=generator()).to(rows.dtype)
    y = taugrad.gumbel_softmax(logits, tau, dim=dim, generator=generator())
    dx, dtau = torch.autograd.grad((y * weights).sum(), (logits, tau))
    for i in range(taus.shape[0]):
        for j in range(taus.shape[1]):
            t, s = taus[i, j].item(), (rows + g)[i, j]
            torch.testing.assert_close(y.movedim(dim, -1)[i, j], textbook_softmax(s, t, -1))
            expected = relaxed_gradient(s, weights.movedim(dim, -1)[i, j], t)
            torch.testing.assert_close(dx.movedim(dim, -1)[i, j], expected)
    hard = taugrad.gumbel_softmax(logits, tau, True, dim=dim, generator=generator())
    for found, expected in zip(torch.autograd.grad((hard * weights).sum(), (logits, tau)), (dx, dtau), strict=True):
        torch.testing.assert_close(found, expected)
    soft = lambda x, tau: taugrad.gumbel_softmax(x, tau, dim=dim, generator=generator())  # noqa: E731
    assert torch.autograd.gradcheck(soft, (logits, tau), fast_mode=True)
    own = lambda x, tau: softmax.softmax(x, tau, dim)  # noqa: E731
    assert torch.autograd.gradcheck(own, (logits, tau), check_forward_ad=True, fast_mode=True)
    if tau.numel() > 4:  # of the fewer, the second derivatives are sums of these; test_softmax.py has one tau for all
        assert torch.autograd.gradgradcheck(own, (logits, tau), fast_mode=True)
    jacobian = softmax.softmax_jacobian(own(logits, tau).detach(), tau.detach(), dim)
    found = torch.einsum("...ij,...j->...i", jacobian, weights.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(found, torch.autograd.grad((own(logits, tau) * weights).sum(), logits)[0])


@pytest.mark.usefixtures("backend")
@each("estimator", PATHWISE)
def test_estimators_take_a_temperature_a_row(estimator):
    logits = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 2, 5, dtype=torch.float64)

    def value_and_gradient(tau, dim=-1, x=logits):
        with by_torch_alone():  # where a number and a tensor draw the same
            z = estimator.sample(x, tau, dim, generator=generator())
        return z, torch.autograd.grad((z * weights).sum(), logits)[0]

    by_number = value_and_gradient(0.7)
    for shape in ((1,), (2, 1), (4, 1, 1), (4, 2, 1)):
        for a, b in zip(value_and_gradient(torch.full(shape, 0.7)), by_number, strict=True):
            torch.testing.assert_close(a, b)
    taus = torch.tensor([0.5, 0.9, 1.3, 2.0], dtype=torch.float64).view(4, 1, 1)
    _, gradients = value_and_gradient(taus)
    for i in range(4):
        torch.testing.assert_close(gradients[i], value_and_gradient(taus[i].item())[1][i])
    z = estimator.sample(logits.movedim(-1, 1), taus, 1)
    assert z.shape == (4, 5, 2)
    layer = OneHotSample(estimator, dim=1)(logits.movedim(-1, 1), taus)
    assert torch.isfinite(torch.autograd.grad(layer.square().sum(), logits)[0]).all()
    for dtype in DTYPES:
        assert estimator.sample(logits.to(dtype), taus).dtype is dtype


@pytest.mark.usefixtures("backend")
@each("estimator", [*SOFT, *TAUGHT])
def test_a_temperature_that_is_a_parameter_learns(estimator):
    for shape in ((), (1,), (4, 1)):
        tau = nn.Parameter(torch.full(shape, 0.7))
        estimator.sample(torch.randn(4, 5), tau).mul(torch.arange(5.0)).sum().backward()
        assert tau.grad.shape == tau.shape
        assert (tau.grad != 0).all()


def test_gumbel_raos_gradient_to_tau_is_that_of_the_mean_of_its_relaxations():
    logits = torch.randn(6, 5, dtype=torch.float64)
    tau = torch.full((6, 1), 0.7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 5, dtype=torch.float64)
    z = GumbelRao(draws=3).sample(logits, tau, generator=(g := generator()))
    (found,) = torch.autograd.grad((z * weights).sum(), tau)
    drawn = gumbel.gumbel_max(logits, generator=(g := generator()))
    assert torch.equal(z, drawn)
    y = sum(torch.softmax(noise.conditional_perturbed(logits, drawn, generator=g) / tau, -1) for _ in range(3)) / 3
    torch.testing.assert_close(found, torch.autograd.grad((y * weights).sum(), tau)[0])


@pytest.mark.usefixtures("backend")
def test_numbers_of_every_kind_are_temperatures():
    x = torch.randn(4, 5)
    for tau in (2, np.float32(2), np.float64(2), np.int64(2), torch.tensor(2), torch.tensor([2]), torch.tensor([2.0])):
        for call in (taugrad.gumbel_softmax, softmax.softmax):
            torch.manual_seed(1)
            expected = call(x, 2.0)
            torch.manual_seed(1)
            torch.testing.assert_close(call(x, tau), expected)
    assert taugrad.gumbel_softmax(x, torch.ones(4, 1, dtype=torch.float64)).dtype is torch.float32


@pytest.mark.usefixtures("backend")
def test_temperatures_that_fit_no_row_get_a_sentence():
    x = torch.randn(4, 5)
    calls = [taugrad.gumbel_softmax, softmax.softmax, *(e.sample for e in PATHWISE), OneHotSample(ReinMax(), -2)]
    for call in calls:
        for shape in ((5, 4), (3, 1), (2, 4, 1), (4, 5)):
            with pytest.raises(
                ValueError, match="tau must have one value, or one for each row: a shape that broadcasts"
            ):
                call(x, torch.ones(shape))
        with pytest.raises(TypeError, match=r"tau must be a number or a floating-point tensor, got torch\.bool"):
            call(x, torch.tensor([True]))
    for call in (taugrad.gumbel_softmax, GumbelRao(2).sample, ReinMax().sample):
        with pytest.raises(ValueError, match="tau must be a positive finite number, got a tensor with nan"):
            call(x, torch.tensor([[1.0], [1.0], [-1.0], [0.5]]))


# Tracers, compilers, devices without values


def square(z: Tensor) -> Tensor:
    return z.cumsum(-1).square().sum((-2, -1))


CALLS = {
    "gumbel_softmax": lambda x: gumbel.gumbel_softmax(x, 0.5),
    "gumbel_softmax, hard, dim 1": lambda x: gumbel.gumbel_softmax(x, 0.5, hard=True, dim=1),
    "gumbel_softmax, tau a row": lambda x: gumbel.gumbel_softmax(x, x[:, :1, :1].exp()),
    "gumbel_max": lambda x: gumbel.gumbel_max(x, 1),
    "gumbel_argmax": lambda x: gumbel.gumbel_argmax(x, 1),
    "embedding": lambda x: embedding.embedding(x, x[0], 0.5, 1),
    "embedding_with_index": lambda x: embedding.embedding_with_index(x, x[0], 0.5, 1)[0],
    "unimix": lambda x: categorical.unimix(x, 0.1, 1),
    "gumbel_noise": noise.gumbel_noise,
    "perturbed": noise.perturbed,
    "conditional_perturbed": lambda x: noise.conditional_perturbed(x, gumbel.gumbel_max(x)),
    "softmax": lambda x: softmax.softmax(x, 0.5, 1),
    "softmax_backward": lambda x: softmax.softmax_backward(x, softmax.softmax(x)),
    "softmax_jacobian": lambda x: softmax.softmax_jacobian(softmax.softmax(x)),
    "softmax_backward_by_jacobian": lambda x: softmax.softmax_backward_by_jacobian(x, softmax.softmax(x)),
    "log_prob": lambda x: categorical.log_prob(x, gumbel.gumbel_max(x)),
    "bernoulli_log_prob": lambda x: categorical.bernoulli_log_prob(x, gumbel.gumbel_max(x)),
    "entropy": categorical.entropy,
    "kl_to_uniform": categorical.kl_to_uniform,
    "kl": lambda x: categorical.kl(x, 2 * x),
    "elbo": lambda x: bounds.elbo(x.sum((-2, -1)), x),
    "importance_weighted_bound": lambda x: bounds.importance_weighted_bound(square, x, 3, chunk_size=2),
    "multi_sample_bound": lambda x: bounds.multi_sample_bound(lambda S: x[:1].sum() + bounds.hard_samples(x, S), 2),
    "vimco": lambda x: bounds.vimco(square, x, 3),
    "hard_samples": lambda x: bounds.hard_samples(x, 3).sum(0),
    "gumbel_top_k": lambda x: subsets.gumbel_top_k(x, 2, 1),
    "gumbel_k_hot": lambda x: subsets.gumbel_k_hot(x, 2, 0.5, 1),
    "sinkhorn": permutations.sinkhorn,
    "gumbel_sinkhorn": permutations.gumbel_sinkhorn,
    **{f"{e!r}.sample": lambda x, e=e: e.sample(x, 0.5, 1) for e in PATHWISE},
    **{f"{e!r}": lambda x, e=e: e.expectation(square, x, 0.5) for e in [*PATHWISE, RLOO(), REBAR(), Enumeration()]},
    "OneHotSample": OneHotSample(ReinMax(), dim=1),
    "OneHotSample.eval": OneHotSample(ReinMax(), dim=1).eval(),
}
over_calls = each("name", CALLS)


class Model(nn.Module):
    def __init__(self, call, layer=None):
        super().__init__()
        self.layer, self.call = layer or nn.Identity(), call

    def forward(self, x):
        return self.call(self.layer(x))


def test_every_function_of_logits_is_tried_here():
    functions = set()
    for module in (bounds, categorical, embedding, gumbel, noise, permutations, softmax, subsets):
        own = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
        functions |= {name for name in own if not name.startswith("_")}
    assert functions <= set(CALLS)


@over_calls
def test_the_meta_device_and_fake_tensors_have_shapes(name):
    call = CALLS[name]
    x = torch.randn(4, 3, 3)
    y = call(x)
    meta = call(torch.randn(4, 3, 3, device="meta", requires_grad=True))
    assert meta.is_meta
    with FakeTensorMode() as mode:
        fake = call(torch.randn(4, 3, 3))
    enumerated = name == "Enumeration()"  # from an arange, which is no fake outside of the mode
    outside = fake if enumerated else call(mode.from_tensor(x))
    for other in (meta, fake, outside):
        assert (other.shape, other.stride(), other.dtype) == (y.shape, y.stride(), y.dtype)


@over_calls
@pytest.mark.command
def test_torch_fx_traces_it_symbolically_and_by_operators(name):
    call = CALLS[name]
    x = torch.randn(4, 3, 3)
    y = call(x)
    traced = torch.fx.symbolic_trace(Model(call))
    for program in (traced, pickle.loads(pickle.dumps(traced)), make_fx(lambda x: call(x))(x)):
        found = program(x)
        assert (found.shape, found.dtype) == (y.shape, y.dtype)
        if y.is_floating_point() and "sample" in str(traced.graph):
            assert not torch.equal(found, program(x)) or not found.any()


SHAPES_MATTER = {"bernoulli_log_prob", "kl_to_uniform", "elbo", "Enumeration()"}  # K becomes a constant; torch warns


@each("name", sorted(CALLS.keys() - SHAPES_MATTER))
def test_torch_jit_traces_it_for_every_batch_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", module="torch.jit._trace")
        traced = torch.jit.trace(CALLS[name], torch.randn(4, 3, 3), check_trace=False)
    for batch in (4, 6):
        x = torch.randn(batch, 3, 3)
        assert traced(x).shape == CALLS[name](x).shape


def compiled(call, *inputs):
    torch.compiler.reset()
    y = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
    torch.compiler.reset()
    return y


@pytest.mark.command
@pytest.mark.parametrize("name", ["gumbel_softmax, tau a row", "gumbel_k_hot", "gumbel_sinkhorn", "REBAR(eta=1.0)"])
def test_what_another_test_does_not_compile_compiles(name):
    x = torch.randn(4, 3, 3, requires_grad=True)
    y = compiled(CALLS[name], x)
    assert y.shape == CALLS[name](x).shape
    y.sum().backward()


TRANSFORMS = {
    "grad": torch.func.grad,
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f), randomness="different"),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
}


@pytest.mark.command
@each("how", TRANSFORMS)
@each("estimator", [STGumbelSoftmax(), ReinMax(), GumbelRao(2)])
def test_transforms_inside_a_compiled_program_give_what_they_give_outside(estimator, how):
    """An operator is no help there: it has no forward mode, and its backward is none that a transform could follow."""
    x = torch.randn(3, 5)
    call = TRANSFORMS[how](lambda x: (estimator.sample(x, 0.7) * torch.arange(5.0)).sum())
    found = []
    for way in (call, lambda x: compiled(call, x)):
        torch.manual_seed(1)
        found.append(way(x))
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.command
@each("estimator", [ReinMaxRao(2), ZGR()])
def test_what_has_no_forward_mode_says_so_in_a_compiled_program_too(estimator):
    call = TRANSFORMS["jvp"](lambda x: estimator.sample(x, 0.7).cumsum(-1).sum())
    for way in (call, lambda x: compiled(call, x)):
        with pytest.raises((NotImplementedError, torch._dynamo.exc.Unsupported)):
            way(torch.randn(3, 5))


@pytest.mark.command
def test_a_row_without_a_sample_is_nan_where_values_cannot_be_read():
    x = torch.zeros(2, 3)
    x[0, 1:] = -torch.inf
    k_hot = compiled(lambda x: subsets.gumbel_k_hot(x, 2), x)
    assert k_hot[0].isnan().all()
    assert k_hot[1].sum() == 2


@pytest.mark.command
def test_a_schedule_of_numbers_compiles_as_often_as_with_torchs_function():
    def compilations(call):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        program = torch.compile(call, backend=counter)
        for step in range(20):
            program(torch.randn(4, 5, requires_grad=True), 1.0 - 0.03 * step).sum().backward()
        torch.compiler.reset()
        return counter.frame_count

    limit = compilations(F.gumbel_softmax)
    assert limit < 5
    for call in (taugrad.gumbel_softmax, OneHotSample(ReinMax(), dim=0), GumbelRao(2).sample):
        assert compilations(call) <= limit
    with by_torch_alone():
        assert compilations(taugrad.gumbel_softmax) <= limit


# Programs for others


def samplers() -> nn.ModuleList:
    """Models of a user's own, along the last dimension and another, soft and hard, in training and in evaluation."""
    last, conv = nn.Linear(3, 5), nn.Conv2d(3, 5, 1)
    return nn.ModuleList(
        [
            Model(lambda x: taugrad.gumbel_softmax(x, 0.5), last),
            Model(lambda x: taugrad.gumbel_softmax(x, 0.5, hard=True, dim=1), conv),
            Model(OneHotSample(ReinMax(), dim=1), conv),
            Model(OneHotSample(ReinMax(), dim=1), conv).eval(),
            Model(lambda x: subsets.gumbel_k_hot(x, 2, 0.5), last),
        ]
    )


@functools.cache  # the tests below share a program
def exported(i: int) -> tuple[nn.Module, torch.export.ExportedProgram, Tensor]:
    torch.manual_seed(0)
    model = samplers()[i]
    shape = (3, 4, 6) if isinstance(model.layer, nn.Conv2d) else (3,)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.randn(2, *shape),), dynamic_shapes=dynamic)
    return model, program, torch.randn(2000, *shape)


def assert_samples(y: Tensor, again: Tensor, logits: Tensor, per_row: int = 1) -> None:
    """Rows that sum to what they should, drawn anew, and as often as softmax says: within 5 standard errors."""
    torch.testing.assert_close(y.sum(1), torch.full_like(y.sum(1), per_row))
    assert not torch.equal(y, again)
    if per_row == 1:
        pi = logits.softmax(1)
        n = y.numel() / y.shape[1]
        rest = [d for d in range(y.ndim) if d != 1]
        assert ((y - pi).mean(rest).abs() < 5 * (0.25 / n) ** 0.5).all() or not ((y == 0) | (y == 1)).all()


@pytest.mark.system
def test_exported_programs_have_any_batch_and_run_where_there_is_no_taugrad(tmp_path):
    for i in range(len(samplers())):
        model, program, x = exported(i)
        assert "taugrad" not in str(program.graph)
        with torch.no_grad():
            assert_samples(program.module()(x), program.module()(x), model.layer(x), 2 if i == 4 else 1)
        if model.training:  # it goes on learning
            y = program.module()(x)
            (y * torch.arange(y.numel()).view_as(y)).sum().backward()
            assert all(p.grad is None or p.grad.any() for p in program.module().parameters())
        torch.export.save(program, tmp_path / f"{i}.pt2")
    code = (
        "import sys; sys.modules['taugrad'] = None; import torch; from pathlib import Path\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.pt2')):\n"
        "    program = torch.export.load(path)\n"
        "    x = torch.randn(7, *program.example_inputs[0][0].shape[1:])\n"
        "    print(tuple(program.module()(x).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(7, 5)", "(7, 5, 4, 6)"]


@pytest.mark.usefixtures("onnx_functions")
@pytest.mark.parametrize("i", [0, 1, 3])
@pytest.mark.command
def test_onnx_files_sample_in_onnxruntime(i, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, program, x = exported(i)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        torch.onnx.export(program, (), tmp_path / "m.onnx", input_names=["x"], output_names=["y"], verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    y, again = (torch.from_numpy(session.run(None, {"x": x.numpy()})[0]) for _ in range(2))
    with torch.no_grad():
        assert_samples(y, again, model.layer(x))


# Modes and modules


@pytest.mark.usefixtures("backend")
@each("estimator", PATHWISE)
def test_autocast_changes_nothing(estimator):
    x = torch.randn(6, 5, requires_grad=True)
    weights = torch.randn(6, 5)

    def both():
        y = estimator.sample(x, torch.tensor(0.7), generator=generator())
        return y, torch.autograd.grad((y * weights).sum(), x)[0]

    expected = both()
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(both(), expected, strict=True):
            assert torch.equal(a, b)
        wide = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        soft = lambda x: taugrad.gumbel_softmax(x, 0.7, generator=generator())  # noqa: E731
        assert torch.autograd.gradcheck(soft, (wide,))


def test_modules_are_copied_pickled_called_by_functional_call_and_in_inference_mode():
    model = Model(OneHotSample(STGumbelSoftmax(), dim=1), nn.Conv2d(3, 5, 1))
    x = torch.randn(2, 3, 4, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(other(x), expected)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, zeros, (x,)).sum(1), torch.ones(2, 4, 6))
    with torch.inference_mode():
        assert torch.equal(model(x).sum(1), torch.ones(2, 4, 6))
    assert model(x[:0]).shape == (0, 5, 4, 6)
    with torch.device("meta"):
        built = Model(OneHotSample(STGumbelSoftmax(), dim=1), nn.Conv2d(3, 5, 1))
        assert built(torch.randn(2, 3, 4, 6)).is_meta


def test_a_pathwise_estimator_is_an_estimator_of_rows():
    """A user's own estimator has no `dim`."""
    assert list(inspect.signature(Pathwise.sample).parameters) == ["self", "logits", "tau", "generator"]
