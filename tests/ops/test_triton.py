"""The kernels for GPUs, by Triton's interpreter: against float64 oracles, and against the CPU's kernels."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import each
from helpers.estimators import PATHWISE
from helpers.oracles import relaxed_gradient, textbook_softmax
from helpers.samples import FALSE_FAILURE, frequencies_p_value
from helpers.triton import DEVICE, kernels, launch
from helpers.words import double_words, float_words, gumbel_of
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import taugrad
from taugrad.errors import KernelError
from taugrad.estimators import (
    DecoupledSTGumbelSoftmax,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    ReinMax,
    STGumbelSoftmax,
    StraightThrough,
)
from taugrad.ops import _fused
from taugrad.ops.categorical import entropy
from taugrad.ops.embedding import embedding
from taugrad.ops.gumbel import gumbel_argmax, gumbel_max
from taugrad.ops.native import kernels as native
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import Relaxation
from taugrad.ops.softmax import softmax, softmax_backward

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Samples of a CPU by Triton's kernels."""
    monkeypatch.setattr(_fused, "_triton_devices", lambda: ("cpu",))
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "_binding", lambda: None)
    with (
        torch.device(DEVICE),
        np.errstate(all="ignore"),
    ):  # the interpreter computes with numpy, also in the lanes that no row has
        yield


SEED = 0x123456789ABCDEF
FUSED = [  # whose sample is a kernel's and whose gradient too; the others compute by torch, or call these
    e
    for e in PATHWISE
    if e.relaxation is not None or isinstance(e, (DecoupledSTGumbelSoftmax, GumbelRao, GumbelSoftmax))
]
A_KERNEL = [STGumbelSoftmax(), GumbelRao(draws=3), GumbelSoftmax()]  # an estimator for each kernel
TAU, GAP = 0.7, 0.5
RELAXATIONS = [Relaxation.PERTURBED, Relaxation.PLAIN, Relaxation.GAPPED, Relaxation.MARKED]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BLOCKS = [
    (3, 1),
    (5, 2),
    (5, 3),
    (7, 10),
    (5, 16),
    (65, 64),
    (3, 100),
    (2, 1088),
]  # rows and classes: padded, exact, both, one row a block
CHUNKS = [  # above what a block holds: with and without a run of noise
    *(((2, 8200), torch.float32), ((1, 12288), torch.float32)),
    *(((1, 8200), torch.bfloat16), ((2, 2100), torch.float64)),
]


def seed() -> Tensor:
    return torch.tensor(SEED)


def words(rows: int, K: int, dtype: torch.dtype) -> Tensor:
    """Noise (rows, K) in float64, by arithmetic of Python."""
    n = rows * K
    drawn = double_words(SEED, n // 32 + 1) if dtype is torch.float64 else float_words(SEED, 0, n // 64 + 1)
    return torch.from_numpy(gumbel_of(drawn)[:n]).view(rows, K).to(DEVICE)


def by_the_cpu(kernel, *arguments) -> Tensor:
    """Return what a kernel of the CPU does for tensors of the device."""
    return kernel(*(a.cpu() if isinstance(a, Tensor) else a for a in arguments)).to(DEVICE)


def logits(rows: int, K: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(rows, K, dtype=torch.float64).to(dtype)
    x[:, 2:3] = -math.inf
    return x


def relaxed(x: Tensor, g: Tensor, relaxation: Relaxation) -> Tensor:
    """The logits of the relaxation, in float64."""
    x = x.double()
    if relaxation is Relaxation.PERTURBED:
        return x + g
    if relaxation is Relaxation.GAPPED:
        most = x.amax(-1, keepdim=True)
        return torch.minimum(x, most - GAP).scatter(-1, (x + g).argmax(-1, keepdim=True), most)
    return x


def gradient(x: Tensor, g: Tensor, dz: Tensor, relaxation: Relaxation) -> Tensor:
    """The gradient by the dense Jacobian, in float64."""
    if relaxation is not Relaxation.MARKED:
        return relaxed_gradient(relaxed(x, g, relaxation), dz, TAU)
    drawn = torch.nn.functional.one_hot((x.double() + g).argmax(-1), x.shape[-1]).double()
    mixed = ((textbook_softmax(x, TAU, -1) + drawn) / 2).log()  # its softmax is the mixture
    return 2 * relaxed_gradient(mixed, dz, 1.0) - relaxed_gradient(x, dz, 1.0) / 2


def check(rows: int, K: int, dtype: torch.dtype, relaxation: Relaxation) -> None:
    x, g = logits(rows, K, dtype), words(rows, K, dtype)
    z, kept, index = launch.sample(x, seed(), relaxation, TAU, gap=GAP, keeps=True)
    drawn = (x.double() + g).argmax(-1)
    assert z.dtype is dtype
    assert torch.equal(z, torch.nn.functional.one_hot(drawn, K).to(dtype))
    assert index is None or torch.equal(index, drawn)
    assert kept.shape == (3 if relaxation is Relaxation.MARKED else 2, rows)
    dz = torch.randn(rows, K, dtype=torch.float64).to(dtype)
    dx, _ = launch.sample_backward(dz, x, kept, index, seed(), relaxation, TAU, gap=GAP)
    assert dx.dtype is dtype
    torch.testing.assert_close(dx.double(), gradient(x, g, dz, relaxation), rtol=0, atol=TOLERANCE[dtype])
    assert (dx[:, 2:3] == 0).all()
    if relaxation is not Relaxation.MARKED:
        y, _, _ = launch.sample(x, seed(), relaxation, TAU, gap=GAP, hard=False)
        expected = textbook_softmax(relaxed(x, g, relaxation), TAU, -1)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@each("relaxation", RELAXATIONS)
@each("shape, dtype", [*((s, torch.float32) for s in BLOCKS), *((s, torch.float64) for s in BLOCKS[::2])])
def test_samples_and_gradients_are_the_oracles_in_blocks_of_rows(shape, dtype, relaxation):
    check(*shape, dtype, relaxation)


@each("relaxation", RELAXATIONS)
@each("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype, relaxation):
    check(5, 40, dtype, relaxation)


@each("relaxation", RELAXATIONS)
@pytest.mark.parametrize(("shape", "dtype"), CHUNKS)
def test_samples_and_gradients_are_the_oracles_in_chunks_of_a_row(shape, dtype, relaxation, monkeypatch):
    monkeypatch.setattr("test_triton.relaxed_gradient", sparse_gradient)
    check(*shape, dtype, relaxation)


def test_a_quarter_of_a_million_classes_are_a_row(monkeypatch):
    monkeypatch.setattr("test_triton.relaxed_gradient", sparse_gradient)
    check(1, 2**18, torch.float32, Relaxation.PERTURBED)


def sparse_gradient(s: Tensor, weights: Tensor, tau: float) -> Tensor:
    """The gradient of `relaxed_gradient`, without the Jacobian of 10^8 numbers."""
    y = textbook_softmax(s, tau, -1)
    return (weights.double() - (weights.double() * y).sum(-1, keepdim=True)) * y / tau


@pytest.mark.usefixtures("binding")
@each("dtype", [torch.float32, torch.float64])
def test_the_noise_is_that_of_the_cpus_kernels(dtype):
    g = torch.empty(5000, dtype=dtype)
    ours, cpus = launch.noise(g.clone(), seed()), by_the_cpu(native.noise, g, seed())
    torch.testing.assert_close(ours, cpus, rtol=0, atol=1e-6 if dtype is torch.float32 else 4e-15)
    torch.testing.assert_close(ours.double(), words(1, 5000, dtype)[0], rtol=1e-6, atol=1e-6)


def test_elements_beyond_2_to_the_31_and_the_33_have_words_of_their_own():
    import triton
    import triton.language as tl

    @triton.jit
    def fill(out, seed, first, B: tl.constexpr):
        at = tl.load(first) + tl.arange(0, B)
        tl.store(out + tl.arange(0, B), kernels.gumbel(at, tl.load(seed), 0, False))
        tl.store(out + B + tl.arange(0, B), kernels.gumbel_run(tl.load(first), tl.load(seed), 0, B))

    for block in (2**25 - 1, 2**25, 2**28 - 1, 2**28, 2**40):
        out = torch.empty(2, 128)
        fill[(1,)](out, seed(), torch.tensor(64 * block), B=128)
        expected = torch.from_numpy(gumbel_of(float_words(SEED, block, 2))).to(DEVICE)
        torch.testing.assert_close(out.double(), expected.expand(2, -1), rtol=1e-6, atol=1e-6)


def test_frequencies_of_the_classes_are_the_softmax():
    x = torch.tensor([0.0, 1.0, 2.0, -math.inf]).expand(40_000, -1).contiguous()
    counts = taugrad.gumbel_max(x).sum(0)
    assert frequencies_p_value(counts, x[0].softmax(-1)) > FALSE_FAILURE
    assert frequencies_p_value(counts, (1.1 * x[0]).softmax(-1)) < FALSE_FAILURE


def layouts(x: Tensor) -> dict[str, tuple[Tensor, int]]:
    """The rows of `x` (2, 3, 4, K) in other places: the tensor, and the dimension of its classes."""
    wide = torch.zeros(2, 3, 4, 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "contiguous": (x, -1),
        "channels first": (x.permute(0, 3, 1, 2).contiguous(), 1),
        "classes first": (x.permute(3, 0, 1, 2).contiguous(), 0),
        "every other": (wide[..., ::2], -1),
        "transposed rows": (x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3), -1),
    }


@each("estimator", FUSED)
def test_a_layout_changes_nothing(estimator):
    samples = []
    for x, dim in layouts(torch.randn(2, 3, 4, 10)).values():
        torch.manual_seed(1)
        leaf = x.detach().requires_grad_()
        z = estimator.sample(leaf, TAU, dim)
        assert z.is_contiguous()
        z = z.movedim(dim, -1)
        samples.append((z.detach(), torch.autograd.grad((z * torch.arange(10.0)).sum(), leaf)[0].movedim(dim, -1)))
    (z, dx), *others = samples  # of contiguous rows, and of the others
    for other_z, other_dx in others:
        torch.testing.assert_close(other_z, z, rtol=0, atol=0)
        torch.testing.assert_close(other_dx, dx)


def test_common_layouts_are_not_copied(monkeypatch):
    held = []
    rows = launch._Rows
    monkeypatch.setattr(launch, "_Rows", lambda dim, *tensors: held.append(rows(dim, *tensors)) or held[-1])
    for call in (taugrad.gumbel_softmax, gumbel_max, gumbel_argmax, softmax):
        for dtype in (torch.float32, torch.bfloat16):
            for x, dim in layouts(torch.randn(2, 3, 4, 10).to(dtype)).values():
                if x.movedim(dim, -1).stride()[:-1] != (10, 20, 60):  # three strides: "transposed rows"
                    call(x, dim=dim)
                    assert held.pop().held[0].data_ptr() == x.data_ptr(), call
    assert not held


@pytest.mark.usefixtures("binding")
@each("draws", [1, 5])
@each("shape", [(5, 10), (2, 1024)])
@each("dtype", [torch.float32, torch.float64])
def test_gumbel_raos_gradient_is_that_of_the_cpus_kernel(shape, dtype, draws):
    x, dz = logits(*shape, dtype), torch.randn(shape, dtype=dtype)
    z, kept, index = launch.sample(x, seed(), Relaxation.NONE, 1.0, keeps=True)
    assert torch.equal(z, by_the_cpu(lambda *a: native.one_hot(*a)[0], x, seed()))
    dx = launch.gumbel_rao(dz, x, kept, index, seed(), draws, TAU)
    expected = by_the_cpu(native.gumbel_rao, dz, x, seed(), draws, TAU)
    torch.testing.assert_close(dx, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.usefixtures("binding")
def test_gumbel_rao_in_chunks():
    x, dz = logits(1, 8200, torch.float32), torch.randn(1, 8200)
    _, kept, index = launch.sample(x, seed(), Relaxation.NONE, 1.0, keeps=True)
    dx = launch.gumbel_rao(dz, x, kept, index, seed(), 2, TAU)
    expected = by_the_cpu(native.gumbel_rao, dz, x, seed(), 2, TAU)
    torch.testing.assert_close(dx, expected, rtol=0, atol=TOLERANCE[torch.float32])


@each("shape", [(9, 10), (2, 8200)])
@each("dtype", [torch.float32, torch.float64])
def test_the_tempered_softmax_and_its_backward(shape, dtype):
    x, grad = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)
    y = softmax(x, TAU)
    torch.testing.assert_close(
        y.detach().double(), textbook_softmax(x.detach(), TAU, -1), rtol=0, atol=TOLERANCE[dtype]
    )
    expected = sparse_gradient(x.detach(), grad, TAU)
    for found in (torch.autograd.grad(y, x, grad)[0], softmax_backward(grad, y.detach(), TAU)):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@each(
    "estimator, shape", [*((e, (2, 1, 3)) for e in FUSED), *((e, s) for e in A_KERNEL for s in [(1, 1, 3), (1, 1, 1)])]
)
def test_a_temperature_a_row_follows_the_classes_to_any_dimension(estimator, shape):
    x, tau = torch.randn(2, 5, 3), 0.3 + torch.rand(shape)
    outputs = []
    for rows, temperature, dim in ((x, tau, 1), (x.movedim(1, -1), tau.movedim(1, -1), -1)):
        torch.manual_seed(1)
        leaf = rows.detach().requires_grad_()
        z = estimator.sample(leaf, temperature, dim).movedim(dim, -1)
        outputs.append((z.detach(), torch.autograd.grad((z * torch.arange(5.0)).sum(), leaf)[0].movedim(dim, -1)))
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.usefixtures("binding")
@each("estimator", [GumbelSoftmax(), STGumbelSoftmax(), StraightThrough(), GappedStraightThrough(gap=1.0)])
@each("K, shape", [(5, ()), (5, (1,)), (5, (6, 1)), (2100, (6, 1))])
def test_a_temperature_that_learns_gets_the_gradient_of_torchs_code(K, shape, estimator):
    x, dz = torch.randn(6, K, dtype=torch.float64), torch.randn(6, K, dtype=torch.float64)
    tau = (TAU + 0.1 * torch.rand(shape, dtype=torch.float64)).requires_grad_()
    torch.manual_seed(1)
    (found,) = torch.autograd.grad(estimator.sample(x, tau), tau, dz)
    g, relaxation = words_of_next_seed(x), relaxation_of(estimator)
    gap = getattr(estimator, "gap", 0.0)
    y = torch.softmax(relaxed_by(x, g, relaxation, gap) / tau, -1)
    torch.testing.assert_close(found, torch.autograd.grad((y * dz).sum(), tau)[0])


def words_of_next_seed(x: Tensor) -> Tensor:
    """The noise that the next sample of torch's seed 1 adds."""
    torch.manual_seed(1)
    return by_the_cpu(native.noise, torch.empty_like(x), _fused.draw_seed(None, x.device))


def relaxation_of(estimator) -> Relaxation:
    return {"StraightThrough": Relaxation.PLAIN, "GappedStraightThrough": Relaxation.GAPPED}.get(
        type(estimator).__name__, Relaxation.PERTURBED
    )


def relaxed_by(x: Tensor, g: Tensor, relaxation: Relaxation, gap: float) -> Tensor:
    if relaxation is Relaxation.GAPPED:
        most = x.amax(-1, keepdim=True)
        return torch.minimum(x, most - gap).scatter(-1, (x + g).argmax(-1, keepdim=True), most)
    return x + g if relaxation is Relaxation.PERTURBED else x


WITHOUT_A_SAMPLE = [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3]


@each("estimator", FUSED)
def test_a_row_without_a_sample_is_nan_and_the_others_are_not(estimator):
    x = torch.tensor([[0.0, 1.0, 2.0], *WITHOUT_A_SAMPLE], requires_grad=True)
    z = estimator.sample(x, TAU)
    assert z[1:].isnan().all()
    assert z[0].isfinite().all()
    (dx,) = torch.autograd.grad(z[0].square().sum(), x)
    assert dx[0].isfinite().all()


def test_a_row_without_a_sample_is_nan_and_has_a_class_in_range():
    x = torch.tensor(WITHOUT_A_SAMPLE)
    assert taugrad.gumbel_max(x).isnan().all()
    classes = taugrad.gumbel_argmax(x)
    assert ((classes >= 0) & (classes < 3)).all()


@each("relaxation", RELAXATIONS)
def test_a_bad_row_in_chunks_is_nan_too(relaxation):
    x = torch.zeros(3, 8200)
    x[0, 5000], x[1] = math.nan, -math.inf
    z, _, _ = launch.sample(x, seed(), relaxation, TAU, gap=GAP)
    assert z[:2].isnan().all()
    assert z[2].sum() == 1


@each("estimator", FUSED)
def test_a_tensor_of_a_bad_temperature_gives_nan(estimator):
    if isinstance(estimator, DecoupledSTGumbelSoftmax):  # has its own
        return
    x = torch.randn(4, 5, requires_grad=True)
    z = estimator.sample(x, torch.tensor([[1.0], [0.0], [-1.0], [math.nan]]))
    (dx,) = torch.autograd.grad((z * torch.arange(5.0)).sum(), x)
    assert dx[0].isfinite().all()
    assert dx[1:].isnan().all()


@each("estimator", FUSED)
def test_no_rows_are_no_error(estimator):
    x = torch.zeros(0, 5, requires_grad=True)
    z = estimator.sample(x, TAU)
    z.sum().backward()
    assert (z.shape, x.grad.shape) == ((0, 5), (0, 5))


@each("estimator", FUSED)
@each("kind", ["number", "tensor"])
def test_nothing_reads_a_value(kind, estimator, monkeypatch):
    tau = TAU if kind == "number" else torch.tensor(TAU)
    x, grad = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    for name in ("__bool__", "__float__", "__int__", "__index__", "tolist", "cpu"):
        monkeypatch.setattr(Tensor, name, forbidden)
    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda t: item(t) if t.dtype is torch.float64 and not t.ndim else forbidden())
    estimator.sample(x, tau).backward(grad)  # a float64 scalar is a number's, of the host


def forbidden(*_: object) -> None:
    raise AssertionError("a value was read")


def test_only_a_seed_and_a_number_or_two_a_row_are_kept():
    for estimator in FUSED:
        x = torch.randn(64, 32, requires_grad=True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
            estimator.sample(x, TAU)
        assert sum(t.numel() for t in saved if t.shape != x.shape) <= 4 * 64 + 2  # three numbers, a class; seed, tau
        assert sum(t.numel() for t in saved if t.shape == x.shape) == x.numel()  # the logits


@each("estimator", [*A_KERNEL, ReinMax()])  # it keeps a number a row more
def test_operators_are_registered_as_torch_wants_them(estimator):
    x = torch.randn(3, 5, requires_grad=True)
    calls = []
    draw = torch.ops.taugrad.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.taugrad, "draw", lambda *a: calls.append(a) or draw(*a))
        estimator.sample(x, TAU)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(draw.default, calls[0], test_utils=tests[:3] if isinstance(estimator, GumbelRao) else tests)


@each("estimator", [*A_KERNEL, ReinMax()])
def test_compiled_without_a_graph_break_it_draws_what_eager_mode_draws(estimator):
    x, grad = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    program = torch.compile(lambda x, tau: estimator.sample(x, tau), fullgraph=True, backend="aot_eager")
    for tau in (0.7, 0.6, 0.5):
        outputs = []
        for call in (estimator.sample, program):
            torch.manual_seed(1)
            z = call(x, tau)
            outputs.append((z.detach(), torch.autograd.grad(z, x, grad)[0]))
        torch.testing.assert_close(outputs[1], outputs[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # a number becomes a variable once


@each("estimator", A_KERNEL)
def test_a_compiled_program_hands_the_kernels_tensors_of_their_device_alone(estimator, monkeypatch):
    """A number on the CPU would be read at the launch, and a graph of launches would keep it for every tau."""
    monkeypatch.setattr(_fused, "_triton_devices", lambda: ("meta",))
    devices, operators = set(), 0

    def compiler(graph, _):
        nonlocal operators
        for node in graph.graph.nodes:
            if "taugrad" in str(node.target):
                operators += 1
                devices.update(x.meta["val"].device.type for x in node.all_input_nodes)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    program = torch.compile(estimator.sample, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    for tau in (0.7, 0.6, torch.ones((), device="meta")):
        program(torch.zeros(6, 5, device="meta", requires_grad=True), tau).sum().backward()
    assert operators == 2 * 3  # forward and backward, of a constant, of a variable and of a tensor
    assert devices == {"meta"}


@each("transform", [torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]])
def test_transforms_inside_a_compiled_program_go_by_torchs_code(transform):
    x = torch.randn(3, 5)
    call = transform(lambda x: (taugrad.gumbel_softmax(x, TAU, hard=True) * torch.arange(5.0)).sum())
    torch._dynamo.reset()
    found = []
    for way in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        found.append(way(x))
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0])


def test_any_size_runs_in_one_compiled_program():
    call = lambda x: STGumbelSoftmax().sample(x, TAU)  # noqa: E731
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    program = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((4, 5), (6, 5), (3, 9)):
        program(torch.randn(shape, requires_grad=True)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    x = torch.randn(4, 5, requires_grad=True)
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.reset()
    torch.compile(call, fullgraph=True, backend="aot_eager")(x).sum().backward()


def test_a_gradient_of_the_gradient_is_that_of_torchs_code():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    for estimator in (taugrad.GumbelSoftmax(), STGumbelSoftmax(), taugrad.StraightThrough()):
        torch.manual_seed(1)
        y = estimator.sample(x, TAU)
        (dx,) = torch.autograd.grad((y * torch.arange(5.0)).sum() + y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(dx.square().sum(), x)
        g = words_of_next_seed(x)
        soft = torch.softmax(relaxed_by(x, g, relaxation_of(estimator), 0.0) / TAU, -1)
        z = soft if isinstance(estimator, taugrad.GumbelSoftmax) else taugrad.straight_through(y.detach(), soft)
        (dx,) = torch.autograd.grad((z * torch.arange(5.0)).sum() + z.square().sum(), x, create_graph=True)
        torch.testing.assert_close(second, torch.autograd.grad(dx.square().sum(), x)[0])


def test_an_embedding_draws_the_codes_again():
    x, weight = torch.randn(20, 12, requires_grad=True), torch.randn(12, 3, requires_grad=True)
    outputs = []
    for call in (lambda: embedding(x, weight, TAU), lambda: taugrad.gumbel_softmax(x, TAU, hard=True) @ weight):
        torch.manual_seed(1)
        e = call()
        outputs.append((e.detach(), *torch.autograd.grad(e.square().sum(), (x, weight))))
    torch.testing.assert_close(outputs[0], outputs[1])


@each("relaxation", RELAXATIONS)
def test_an_embeddings_batch_of_gradients_is_taken_at_once(relaxation):
    x, weight = torch.randn(20, 12, requires_grad=True), torch.randn(12, 3)
    e = embedding(x, weight, TAU, relaxation=relaxation, gap=GAP)
    grads = torch.randn(3, 20, 3)
    (batch,) = torch.autograd.grad(e, x, grads, is_grads_batched=True, retain_graph=True)
    for found, grad in zip(batch, grads, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(e, x, grad, retain_graph=True)[0])


def test_an_embeddings_row_without_a_sample_is_nan_and_the_others_are_not(monkeypatch):
    x = torch.zeros(3, 4)
    x[0, 1], x[1] = math.nan, -math.inf
    e = embedding(x, torch.ones(4, 2, dtype=torch.bfloat16))
    assert e.dtype is torch.bfloat16
    assert e[:2].isnan().all()
    assert (e[2] == 1).all()
    monkeypatch.setattr("taugrad.ops.embedding.readable", lambda _: False)  # as of a GPU
    assert embedding(torch.zeros(3, 4), torch.ones(4, 2), torch.tensor(-1.0)).isnan().all()


@each("relaxation", RELAXATIONS)
def test_far_from_zero_and_at_a_small_temperature_the_gradient_still_sums_to_zero(relaxation):
    x, dz = torch.randn(200, 16) + 1e4, torch.randn(200, 16)
    _, kept, index = launch.sample(x, seed(), relaxation, 0.05, gap=GAP, keeps=True)
    dx, _ = launch.sample_backward(dz, x, kept, index, seed(), relaxation, 0.05, gap=GAP)
    assert dx.sum(-1).abs().max() <= 1e-6 * dz.abs().max() / 0.05


def test_functions_without_a_kernel_go_by_torch_with_the_kernels_noise():
    x = torch.randn(6, 5)
    torch.testing.assert_close(entropy(x), torch.distributions.Categorical(logits=x).entropy())
    torch.manual_seed(1)
    g = gumbel_noise(x)
    torch.testing.assert_close(g, words_of_next_seed(x), rtol=0, atol=1e-6)


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="generator must be on the device of the logits, meta, got one on cpu"):
        _fused.draw_seed(torch.Generator(), torch.device("meta"))
    for tau in (torch.ones((), device="meta"), torch.ones(3, 1, device="meta")):
        with pytest.raises(ValueError, match=r"tau must be on the device of the logits, .*, got one on meta"):
            launch.sample(torch.zeros(3, 4), seed(), Relaxation.PERTURBED, tau)
    assert not launch.fits(torch.zeros((), dtype=torch.float32))
    assert not launch.fits(torch.zeros(3, 4, dtype=torch.complex64))
    assert not launch.fits(torch.zeros(1).expand(2**31))


@each("error", [RuntimeError("PassManager::run failed\nand more"), OSError()])
def test_a_kernel_that_does_not_compile_is_one_sentence(error, monkeypatch):
    class Broken:
        __name__ = "sample_tile"

        def __getitem__(self, grid):
            raise error

    monkeypatch.setattr(launch.kernels, "sample_tile", Broken())
    reason = str(error).split("\n")[0] or "OSError"
    with pytest.raises(
        KernelError, match=f"kernel sample_tile cannot run on {DEVICE}.*: {reason}. TAUGRAD_BACKEND=torch"
    ):
        taugrad.gumbel_softmax(torch.zeros(2, 5), hard=True)
