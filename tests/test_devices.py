"""Nothing reads a value away from the CPU, and nothing calls more operators than torch's own function.

The meta device stands in for a GPU: its tensors have no values, so whatever would wait for one raises.
"""

import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import each
from helpers.estimators import PATHWISE, UNBIASED
from helpers.images import (
    cat_vae,
    images,
    loaders,
    logic_gates,
    semi_supervised,
    structured,
    token_prior,
    tokenizer,
    trainer,
)
from helpers.matching import Matching, filled
from lightning import Callback
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taugrad import bounds
from taugrad.data import datamodule
from taugrad.data.batches import Batches, ShuffledBatches
from taugrad.data.datamodule import ImageData
from taugrad.data.images import Split, Splits
from taugrad.data.pictures_on_disk import PicturesOnDisk
from taugrad.distributions import OneHotCategorical, RelaxedOneHotCategorical
from taugrad.errors import ConfigError, NonFiniteLossError
from taugrad.estimators import RLOO, Enumeration, GumbelSoftmax, ReinMax, STGumbelSoftmax
from taugrad.layers import (
    BinaryGate,
    CategoricalQuantizer,
    HardConcreteGate,
    OneHotSample,
    ResidualQuantizer,
    Selector,
    codes,
)
from taugrad.models import logic_gates as logic_gates_models
from taugrad.models import semi_supervised as semi_supervised_models
from taugrad.models import token_prior as token_prior_models
from taugrad.ops import _checks, _fused, categorical, embedding, gates, gumbel, permutations, softmax, subsets
from taugrad.rl import maddpg, ppo
from taugrad.rl.algorithm import Clock
from taugrad.rl.envs.bandit import FactoredBandit
from taugrad.rl.maddpg import MADDPG
from taugrad.rl.mappo import MAPPO
from taugrad.rl.ppo import PPO
from taugrad.training import images as image_tasks


class Counted(TorchDispatchMode):
    """Counts the operators that are called, but for views, which compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.calls[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


class Transfers(TorchDispatchMode):
    """Counts the operators whose tensors lie on several devices; numbers without a dimension may lie anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor) and x.ndim]
        self.calls += len({x.device.type for x in tensors}) > 1
        return result


def meta(*shape: int) -> Tensor:
    return torch.randn(shape, device="meta", requires_grad=True)


def total(z: Tensor) -> Tensor:
    return z.cumsum(-1).square().sum((-2, -1))


def test_a_read_would_raise_here():
    with pytest.raises(RuntimeError, match="meta"):
        meta(3).sum().item()
    with pytest.raises(RuntimeError, match="meta"):
        bool(meta(3).isnan().any())


def meta_quantizer(logits: str) -> CategoricalQuantizer:
    return CategoricalQuantizer(5, 7, STGumbelSoftmax(), logits=logits, loss="diversity", weight=0.1).to("meta")


FUNCTIONS = {
    **{f"{e!r}.sample": lambda x, tau, e=e: e.sample(x, tau) for e in PATHWISE},
    **{
        f"{e!r}": lambda x, tau, e=e: e.expectation(total, x, tau)
        for e in [STGumbelSoftmax(), *UNBIASED, Enumeration()]
    },
    "OneHotSample": lambda x, tau: OneHotSample(STGumbelSoftmax(), dim=1)(x, tau),
    "embedding": lambda x, tau: embedding.embedding(x, x[0].T, tau),
    **{
        f"CategoricalQuantizer, {logits}": lambda x, tau, logits=logits: meta_quantizer(logits)(x, tau).quantized
        for logits in ("linear", "distance")
    },
    "softmax": softmax.softmax,
    "gumbel_k_hot": lambda x, tau: subsets.gumbel_k_hot(x, 2, tau),
    "gumbel_sinkhorn": lambda x, tau: permutations.gumbel_sinkhorn(x[..., :3, :3], tau),
    "entropy": lambda x, tau: categorical.entropy(x),
    "kl": lambda x, tau: categorical.kl(x, 2 * x),
    "log_prob": lambda x, tau: categorical.log_prob(x, gumbel.gumbel_max(x)),
    "bernoulli_log_prob": lambda x, tau: categorical.bernoulli_log_prob(x, gumbel.gumbel_max(x)),
    "elbo": lambda x, tau: bounds.elbo(x.sum((-2, -1)), x),
    "importance_weighted_bound": lambda x, tau: bounds.importance_weighted_bound(total, x, 3),
    "multi_sample_bound": lambda x, tau: bounds.multi_sample_bound(lambda S: x.sum() + bounds.hard_samples(x, S), 2),
}


TAU_WITHOUT_GRADIENT = ("ReinMax", "DecoupledSTGumbelSoftmax", "ZGR", "MinimumVariance", "CAGE")


@each("name", FUNCTIONS)
@each("kind", ["number", "tensor", "row", "learned"])
def test_nothing_reads_a_value_forward_or_backward(name, kind):
    tau = {
        "number": lambda: 0.5,
        "tensor": lambda: torch.ones((), device="meta"),
        "row": lambda: torch.ones(4, 1, 1, device="meta"),
        "learned": lambda: torch.ones((), device="meta", requires_grad=True),
    }[kind]()
    x = meta(4, 3, 5)
    y = FUNCTIONS[name](x, tau)
    assert y.is_meta
    y.sum().backward()
    assert x.grad.shape == x.shape
    if kind == "learned" and ".sample" in name and not name.startswith(TAU_WITHOUT_GRADIENT):
        assert tau.grad.shape == ()


LAYERS = {
    "BinaryGate": BinaryGate,
    "HardConcreteGate": lambda _: HardConcreteGate(),
    **{f"Selector, {again}": lambda e, again=again: Selector(5, 2, e, repetition=again) for again in (False, True)},
    **{
        f"CategoricalQuantizer, {loss}": lambda e, loss=loss: CategoricalQuantizer(
            5, 4, e, groups=2, code_dim=6, loss=loss, weight=0.1, unimix=0.01
        )
        for loss in ("kl", "diversity")
    },
    "CategoricalQuantizer, distance": lambda e: CategoricalQuantizer(5, 4, e, logits="distance", restore=True),
    "ResidualQuantizer": lambda e: ResidualQuantizer(5, 4, e, levels=2, weight=0.1),
}


@each("name", LAYERS)
@each("estimator", [GumbelSoftmax(), STGumbelSoftmax(), ReinMax()])
def test_no_layer_reads_a_value(name, estimator):
    """All but the router, which asks once how many rows each expert has."""
    layer, x = LAYERS[name](estimator).to("meta"), meta(4, 3, 5)
    for tau in (0.5, torch.ones((), device="meta")):
        out = layer.train()(x, tau)
        (out.quantized.sum() + out.loss if hasattr(out, "quantized") else out.sum()).backward()
        assert x.grad.shape == x.shape
        out = layer.eval()(x, tau)
        if hasattr(out, "quantized"):
            assert layer.encode(x).shape == out.indices.shape
            assert layer.decode(out.indices).shape == out.quantized.shape


def test_no_distribution_reads_a_value():
    """Where torch's own validation, which is on by default, is off."""
    x = meta(4, 5)
    exact = OneHotCategorical(STGumbelSoftmax(), x, unimix=0.01, validate_args=False)
    for made in (exact, RelaxedOneHotCategorical(x, 0.5, validate_args=False)):
        z = made.rsample((3,))
        assert z.shape == (3, 4, 5)
        (z.sum() + made.log_prob(z.detach()).sum()).backward()
    assert exact.entropy().shape == torch.distributions.kl_divergence(exact, exact).shape == (4,)


@each("build", [cat_vae, structured, semi_supervised, tokenizer, token_prior, logic_gates])
def test_no_training_step_of_a_model_reads_a_value(build):
    model = build().model.to("meta")
    x = torch.rand(6, 4, 4, device="meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    # The pathwise ones, of which a model sees the sample alone, are above.
    for estimator in [GumbelSoftmax(), STGumbelSoftmax(), *([] if build is logic_gates else UNBIASED)]:
        loss = model.loss_terms(x, labels, estimator, 0.5)["loss"]
        loss.backward()
        assert loss.is_meta, estimator
    torch.optim.Adam(model.parameters()).step()  # which knows no estimator


ALGORITHMS = {
    "PPO": (PPO(hidden=(8,), epochs=2, batch_size=16), partial(FactoredBandit, factors=5, choices=3)),
    "MAPPO": (MAPPO(hidden=(8,), epochs=2, batch_size=16), Matching),  # whose third agent leaves early
    **{
        f"MADDPG, {critic}, {estimator!r}": (
            MADDPG(estimator, hidden=(8,), critic=critic, learning_starts=1, updates=4, batch_size=16),
            Matching,
        )
        for critic in ("multilinear", "concat")
        for estimator in (STGumbelSoftmax(), RLOO(2))
    },
}


@each("name", ALGORITHMS)
def test_no_optimizer_step_of_a_policy_reads_a_value_or_moves_a_tensor(name, monkeypatch):
    """Transitions and the order of the minibatches move once; whether the losses were finite is read once."""
    algorithm, make = ALGORITHMS[name]
    agent, window, collector, _ = filled(algorithm, make=make)
    agent.to("meta")
    optimizer, after, read = torch.optim.Adam(agent.parameters()), [], []
    for module in (ppo, maddpg):
        monkeypatch.setattr(module, "require_finite", lambda _, loss, *rest: read.append(loss))
    optimizer.register_step_post_hook(lambda *_: after.append(transfers.calls))
    with Transfers() as transfers:
        agent.improve(window, optimizer, Clock(collector.env_steps, 1000))
    assert len(after) >= 4
    assert 0 < after[0] == after[-1] == transfers.calls
    assert [loss.is_meta for loss in read] == [True]


@each(
    "algorithm, module",
    [(PPO(epochs=2, batch_size=16), ppo), (MADDPG(Enumeration(), learning_starts=1, updates=4), maddpg)],
)
def test_a_policys_loss_that_is_not_finite_is_found_late(algorithm, module, monkeypatch):
    agent, window, collector, optimizer = filled(algorithm)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(len(steps)))
    with torch.no_grad():
        next(p for name, p in agent.named_parameters() if name.startswith(("value", "critic"))).fill_(math.nan)
    clock = Clock(collector.env_steps, 1000)
    with pytest.raises(NonFiniteLossError, match=f"term of the loss is nan at step {clock.steps}"):
        agent.improve(window, optimizer, clock)
    assert not steps
    for where in (module, _checks):
        monkeypatch.setattr(where, "readable", lambda _: False)
    with pytest.raises(NonFiniteLossError, match=f"term of the loss is nan at step {clock.steps}"):
        agent.improve(window, optimizer, clock)
    assert len(steps) >= 4


def calls(function, x: Tensor, **arguments) -> int:
    """Operators called by a function of logits and its backward."""
    x = x.detach().requires_grad_()
    with Counted() as counted:
        function(x, **arguments).backward(torch.empty_like(x))
    return counted.calls.total()


@each("hard", [False, True])
@each("dim", [-1, 1])
@each("tau", ["number", "tensor", "row"])
@each("dtype, casts", [(torch.float32, 0), (torch.float64, 0), (torch.bfloat16, 6), (torch.float16, 6)])
def test_a_sample_calls_no_more_operators_than_torchs_function(hard, dim, tau, dtype, casts):
    """The sign of a tensor tau is checked by two; half precision is computed in single, and cast there and back."""
    x = torch.empty(32, 10, 10, dtype=dtype, device="meta")
    ones = {"tensor": x.new_ones(()), "row": torch.ones_like(x.select(dim, 0)).unsqueeze(dim)}
    arguments = {"tau": ones.get(tau, 0.5), "hard": hard, "dim": dim}
    torchs = calls(F.gumbel_softmax, x, **arguments)
    assert calls(gumbel.gumbel_softmax, x, **arguments) <= torchs + casts + (0 if tau == "number" else 2)


# Which kernels there are


@pytest.fixture
def asked(monkeypatch, caplog):
    """Asks for the devices with Triton, under a choice, where Triton fails with an error or runs."""

    def ask(choice: str, devices, gpu: bool = True) -> list[str]:
        monkeypatch.setenv("TAUGRAD_BACKEND", choice)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: "cuda")
        monkeypatch.setattr(_fused, "_triton", lambda: SimpleNamespace(devices=devices))
        _fused._devices_of_triton.cache_clear()
        with caplog.at_level("INFO", "taugrad"):
            found = [_fused._triton_devices() for _ in range(2)]
        assert found[0] == found[1]
        return found[0], [record.getMessage() for record in caplog.records]

    yield ask
    monkeypatch.undo()
    _fused._devices_of_triton.cache_clear()


def failing(error: Exception):
    def devices() -> None:
        raise error

    return devices


def test_triton_is_announced_once(asked):
    assert asked("auto", lambda: ("cuda", "xpu")) == (
        ("cuda", "xpu"),
        ["discrete samples on cuda and xpu by Triton's kernels"],
    )


@each(
    "error", [ImportError("No module named 'triton'"), RuntimeError("Failed to find C compiler\nand more"), OSError()]
)
def test_where_triton_fails_samples_go_by_torch_and_the_log_says_why(error, asked, caplog):
    caplog.clear()
    reason = str(error).split("\n")[0] or "OSError"
    assert asked("auto", failing(error)) == ((), [f"discrete samples on cuda by torch: {reason}"])
    with pytest.raises(ConfigError, match=f"TAUGRAD_BACKEND is triton, but Triton compiles no kernel here: {reason}"):
        asked("triton", failing(error))


@each("choice", ["native", "torch"])
def test_another_choice_does_not_ask_triton(choice, asked):
    assert asked(choice, failing(AssertionError("asked"))) == ((), [])


def test_without_a_gpu_triton_is_not_asked(asked):
    assert asked("auto", failing(AssertionError("asked")), gpu=False) == ((), [])


# Training: on a device where reading a value would wait, `readable` is false


@pytest.fixture
def far(monkeypatch):
    """Values of the training that cannot be read without waiting; Tensors that are read in a step are an error."""
    for module in (
        *(image_tasks, semi_supervised_models, logic_gates_models, token_prior_models),
        *(_checks, codes, embedding, gates),
    ):
        monkeypatch.setattr(module, "readable", lambda _: False)


class Forbidden(Callback):
    """Forbids reading between a training step's start and its end."""

    NAMES = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "cpu")

    def __init__(self, every: int) -> None:
        self.every, self.steps = every, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.patch = pytest.MonkeyPatch()
        self.steps += 1
        if self.steps % self.every:  # the others are logged
            for name in self.NAMES:
                self.patch.setattr(Tensor, name, refuse)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.patch.undo()

    def on_exception(self, trainer, pl_module, exception):
        self.patch.undo()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a value was read in a training step")


@pytest.mark.usefixtures("far")
@each("build", [cat_vae, structured, semi_supervised, tokenizer, token_prior, logic_gates])
def test_a_training_step_that_is_not_logged_reads_nothing(build, tmp_path):
    task, forbidden = build(optimizer=torch.optim.SGD), Forbidden(every=4)
    fit = trainer(tmp_path, forbidden, max_steps=20, log_every_n_steps=4)
    fit.fit(task, *loaders())
    assert fit.global_step == forbidden.steps == 20


def test_a_training_step_on_a_cpu_does_read(tmp_path):
    with pytest.raises(AssertionError, match="a value was read in a training step"):
        trainer(tmp_path, Forbidden(every=4), max_steps=20).fit(cat_vae(), *loaders())


@pytest.mark.usefixtures("far")
@each("when", ["logged", "end of the epoch", "saved"])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_made_of_it(when, tmp_path):
    task = cat_vae()
    terms = task.model.loss_terms

    def broken(*arguments):
        loss = terms(*arguments)["loss"]
        return {"loss": loss + (math.nan if task.global_step == 3 else 0)}  # its gradient stays finite

    task.model.loss_terms = broken
    path = tmp_path / "5.ckpt"
    saving = LambdaCallback(on_train_batch_end=lambda fit, *_: fit.global_step == 5 and fit.save_checkpoint(path))
    every = {"logged": 5, "end of the epoch": 100, "saved": 100}[when]
    fit = trainer(tmp_path, *([saving] if when == "saved" else []), max_steps=20, log_every_n_steps=every)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 3 \(tau = 0.97\), with loss = nan"):
        fit.fit(task, *loaders())
    assert fit.global_step <= {"logged": 5, "end of the epoch": 13, "saved": 5}[when]
    assert not path.exists()


def test_the_data_move_to_the_device_once_an_epoch(monkeypatch):
    data = ImageData(lambda: Splits(*[images(40)] * 3), batch_size=8, stack=2, labels=10, labelled_batch_size=4)
    place = SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = SimpleNamespace(strategy=place, world_size=1, global_rank=0, limit_train_batches=1.0)
    monkeypatch.setattr(datamodule, "balanced", lambda labels, count, seed: torch.arange(count))
    data.setup("fit")
    for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        with Counted() as counted:
            for x, labels in batches:
                assert (x.device.type, labels.device.type) == ("meta", "meta")
        assert counted.calls["aten::_to_copy"] - len(batches) <= 1  # uint8 to float each time; the order of the epoch


def test_pictures_on_disk_wait_for_no_device():
    """They move once a stack; a row that lay on the device would have to come back to choose a file."""
    pictures = PicturesOnDisk(lambda name: torch.full((2, 2), int(name), dtype=torch.uint8), list(range(40)), (2, 2))
    split = Split(pictures, torch.arange(40)).to(torch.device("meta"))
    for batches in (ShuffledBatches(split, 8, seed=0, stack=2), Batches(split, 8)):
        with Transfers() as transfers:
            for x, labels in batches:
                assert (x.device.type, labels.device.type) == ("meta", "meta")
        assert transfers.calls - len(batches) <= 1  # the order of the epoch
