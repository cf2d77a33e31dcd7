"""The benchmarks as a program, on tiny problems: what they measure of memory, and that every number is one.

No time is asserted here. Pyro and reinmax come with the development dependencies.
"""

import json
import math
import os
import pickle
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from helpers.circuits import Gates, pictures
from helpers.estimators import EVERY
from helpers.images import task
from PIL import Image
from torch import Tensor

from taugrad.commands import bench as benchmarks
from taugrad.commands import bench_circuits as benchmark_circuits
from taugrad.commands import bench_processes as benchmark_processes
from taugrad.errors import ConfigError
from taugrad.estimators import Enumeration
from taugrad.threads import WAITING


@pytest.fixture(scope="module")
def bench():
    return benchmarks


@pytest.fixture
def records(bench, tmp_path):
    """Run a command on one thread, in one round, and return what it writes by shape and contestant."""

    def run(*command):
        common = ["--threads", "1", "--rounds", "1", "--json", f"{tmp_path}/a.json", "--plot", f"{tmp_path}/a.png"]
        bench.main([*command, *common])
        assert (tmp_path / "a.png").stat().st_size > 1000
        written = json.loads((tmp_path / "a.json").read_text())
        for record in written:
            assert {"bench", "threads", "torch", "backend", "bound", "cpu", "date"} <= set(record)
            values = [value for value in record.values() if isinstance(value, float)]
            assert values
            assert all(0 < value < math.inf for value in values), record
        return {(record.get("shape"), record["contestant"]): record for record in written}

    return run


def test_op_measures_every_contestant_and_the_saved_bytes_are_within_their_targets(records):
    found = records("op", "--no-compile", "--shapes", "40x10", "8x64")
    full = ("F.gumbel_softmax", "Pyro", "taugrad.gumbel_softmax", "reinmax.reinmax", "taugrad.ReinMax")
    rao = ("taugrad.GumbelRao(1)", "taugrad.GumbelRao(100)")
    names = [(shape, name) for shape in ("40x10", "8x64") for name in (*full, "copy of the logits")]
    assert set(found) == {*names, *(("40x10", name) for name in rao)}
    for shape in ("40x10", "8x64"):
        for name in full:
            parts = {"forward_ns", "backward_ns", "both_ns", "speedup", "speedup_min", "speedup_max", "saved"}
            assert parts <= set(found[shape, name])
        assert found[shape, "taugrad.gumbel_softmax"]["saved"] <= 1.0
        assert found[shape, "taugrad.ReinMax"]["saved"] <= 1.2
    first, last = (found["40x10", name]["saved"] for name in rao)
    assert first == last


def test_op_measures_other_dtypes_and_refuses_a_device_that_is_not_there(records, bench):
    found = records("op", "--no-compile", "--shapes", "40x10", "--dtype", "bfloat16", "--tau", "0.1")
    assert {found["40x10", name]["dtype"] for name in ("F.gumbel_softmax", "taugrad.gumbel_softmax")} == {"bfloat16"}
    for name in ("nonsense", "meta", "cuda:99", "cpu:1"):
        with pytest.raises(ConfigError, match=f"--device must be a device that torch finds here, of .*, got {name}"):
            bench.main(["op", "--device", name])


def test_estimators_are_measured_against_the_gradient_that_enumeration_has(bench, tmp_path):
    f, logits = bench.estimators.problem(3, rows=2)
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(Enumeration().expectation(f, leaf).sum(), leaf)
    torch.testing.assert_close(bench.estimators.exact_gradient(f, logits), expected)
    common = ["--threads", "1", "--rounds", "1", "--json", f"{tmp_path}/a.json"]
    bench.main(["estimators", "--classes", "2", "100", "--rows", "1", "--draws", "20", *common])
    found = {(r["shape"], r["contestant"]): r for r in json.loads((tmp_path / "a.json").read_text())}
    names = set(bench.estimators.every())
    assert names == {type(estimator).__name__ for estimator in EVERY}
    many = names - {"Enumeration"}  # of 10,000 configurations
    assert set(found) == {("K = 2", name) for name in names} | {("K = 100", name) for name in many}
    assert found["K = 2", "Enumeration"]["cosine"] == pytest.approx(1)
    assert found["K = 2", "Enumeration"]["bias"] < 1e-5
    assert all(r["milliseconds"] > 0 and r["saved"] > 0 and -1 <= r["cosine"] <= 1 + 1e-6 for r in found.values())


def test_saved_bytes_are_within_their_targets_on_both_backends(bench, backend):
    x = torch.randn(40, 10, requires_grad=True)
    samplers = bench.samplers(x, 1.0, compiled=False)
    assert bench.saved_bytes(samplers["taugrad.gumbel_softmax"], x) <= x.nbytes
    assert bench.saved_bytes(samplers["taugrad.ReinMax"], x) <= 1.2 * x.nbytes
    one, hundred = (bench.saved_bytes(bench.GumbelRao(draws).sample, x) for draws in (1, 100))
    assert one == hundred


def test_saved_bytes_count_a_storage_once_whole_and_the_logits_too(bench):
    x = torch.randn(6, 4, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        y = x.exp()  # saves y
        return x * y[:, :2].repeat(1, 2) * y  # saves x, a copy, a product and y again

    assert bench.saved_bytes(lambda x: x * 2, x) == 0
    assert bench.saved_bytes(lambda x: x * x, x) == x.nbytes
    assert bench.saved_bytes(lambda x: x.exp()[:1].exp(), x) == x.nbytes + x.nbytes // 6
    assert bench.saved_bytes(f, x) == 4 * x.nbytes


def test_backward_measures_all_three_and_leaves_a_large_jacobian_out(records):
    found = records("backward", "--shapes", "4x6", "2x20000")
    ours, own = "taugrad.softmax_backward", "torch._softmax_backward_data"
    assert set(found) == {*((s, n) for s in ("4x6", "2x20000") for n in (ours, own)), ("4x6", "Jacobian product")}
    assert found["4x6", ours]["bytes"] == 4 * 6 * 8
    assert found["4x6", "Jacobian product"]["bytes"] == 4 * 6 * 6 * 8
    for record in found.values():
        assert record["dtype"] == "float64"
        assert {"microseconds", "over_ours", "over_ours_min", "over_ours_max"} <= set(record)


@contextmanager
def here(waiting):
    """Run what came through a pickle in this process: another one would take seconds to start."""
    yield lambda side: pickle.loads(pickle.dumps(side))()


@pytest.mark.system
def test_train_measures_the_loops_and_what_waiting_threads_cost_alone_and_on_a_busy_machine(records, monkeypatch):
    monkeypatch.setattr(benchmarks, "process", here)
    small = ["model.encoder=[16]", "model.decoder=[16]", "model.latents=2"]
    found = records("train", *small, "--steps", "60")
    loops = ["taugrad, hand-written loop", "taugrad, Lightning", "torch alone, hand-written loop"]
    ways = ["threads wait asleep", "threads wait spinning"]
    runs = [f"{name}, {where}" for where in ("alone", "busy machine") for name in ("default VAE", "policy")]
    assert list(found) == [*(("deep VAE", loop) for loop in loops), *((run, way) for run in runs for way in ways)]
    assert all({"steps_per_second", "milliseconds"} <= set(record) for record in found.values())
    assert all("over_previous" in found[run, ways[1]] for run in runs)


def test_a_process_of_the_benchmark_waits_as_it_is_told_whatever_its_parent_was_told(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    before = dict(os.environ)
    with benchmark_processes.process({"OMP_WAIT_POLICY": "passive"}) as call:
        assert [call(partial(os.getenv, name)) for name in WAITING] == ["passive", None, None]
        assert dict(os.environ) == before
        with pytest.raises(RuntimeError, match="terminated abruptly"):
            call(partial(os._exit, 1))


def test_classes_measures_a_sampled_and_a_marginalized_class_at_every_number_of_classes(records):
    small = ["model.channels=[2,2]", "model.hidden=8", "model.latent_size=2", "data.batch_size=50"]
    found = records("classes", *small, "--steps", "4", "--classes", "10", "12")
    assert set(found) == {(f"{c} classes", way) for c in (10, 12) for way in ("sampled", "marginalized")}
    assert all("over_previous" in record for (_, way), record in found.items() if way == "marginalized")


def test_tokenizers_trains_the_same_net_around_every_quantizer(records, tmp_path):
    for split, n in (("train", 12), ("test", 4)):
        for i in range(n):
            (tmp_path / "set" / split / "a").mkdir(parents=True, exist_ok=True)
            noise = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(tmp_path / "set" / split / "a" / f"{i}.png")
    data = ["data=image_folder", f"data.source.root={tmp_path}/set", "data.source.validation=0"]
    found = records("tokenizers", *data, "--codes", "512", "--steps", "1", "--batch", "4", "--seeds", "0", "1")
    names = {name for _, name in found}
    assert len(names) == 18
    assert {"FSQ", "LFQ", "rotation trick, 8 dimensions", "taugrad, ReinMax"} <= names
    assert all(1 <= record["perplexity"] <= 16 and record["in_use"] <= 16 / 512 for record in found.values())
    assert all(record["mse_sd"] > 0 for record in found.values())
    short = ["--codes", "512", "--steps", "1", "--batch", "4"]
    chosen = records("tokenizers", *data, *short, "--only", "taugrad, ReinMax", "FS")  # a whole name is that one alone
    assert {name for _, name in chosen} == {"FSQ", "taugrad, ReinMax"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["op", "--tau", "0"], "argument --tau: must be a positive finite number, got 0"),
        (["op", "--tau", "nan"], "argument --tau: must be a positive finite number, got nan"),
        (["op", "--tau", "cold"], "argument --tau: must be a positive finite number, got cold"),
        (["op", "--rounds", "0"], "argument --rounds: must be a whole number that is at least 1, got 0"),
        (["estimators", "--draws", "25"], "argument --draws: must be a multiple of ten that is at least 20, got 25"),
        (["estimators", "--draws", "10"], "argument --draws: must be a multiple of ten that is at least 20, got 10"),
        (["estimators", "--classes", "1"], "argument --classes: must be a whole number that is at least 2, got 1"),
        (["circuit", "--gates", "501"], "argument --gates: must be a multiple of ten that is at least 10, got 501"),
        (["op", "--shapes", "4xK"], "argument --shapes: must be a whole number that is at least 1, got K"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(bench, words, sentence, capsys):
    with pytest.raises(SystemExit):
        bench.main(words)
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_bad_arguments_end_in_a_sentence(bench, monkeypatch):
    with pytest.raises(ConfigError, match="--steps must be at least 60"):
        bench.main(["train", "--steps", "30"])
    with pytest.raises(ConfigError, match="--codes must be of 512, 8192, for which FSQ has levels, got 64"):
        bench.main(["tokenizers", "data=binarized_mnist", "--codes", "64"])
    with pytest.raises(ConfigError, match=r"--only must be parts of the names taugrad, .*, got data=cifar10"):
        bench.main(["tokenizers", "--codes", "512", "--only", "FSQ", "data=cifar10"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"this needs matplotlib: pip install 'taugrad\[plot\]'"):
        bench.main(["backward", "--plot", "a.png"])


@pytest.mark.parametrize("given", ["random", "run"])
def test_circuit_measures_a_random_circuit_or_that_of_a_run(given, records, monkeypatch):
    data = pictures()
    monkeypatch.setattr(benchmark_circuits, "load_run", lambda path: (task(Gates(thresholds=3)), data, {}))
    which = ["--gates", "40", "--depth", "2"] if given == "random" else ["--run", "somewhere"]
    found = records("circuit", *which, "--hidden", "8", "--images", "70")
    pixels, classes = (784, 10) if given == "random" else (16, 5)
    rivals = ["its network in torch", f"perceptron {pixels}-8-{classes}, onnxruntime"]
    assert [name for _, name in found] == ["circuit", "circuit, packed before", *rivals]
    assert all({"images_per_second", "time_over_circuit", "ns"} <= set(record) for record in found.values())


def test_policy_measures_the_two_loops(records):
    small = ["model.hidden=[8]", "model.minibatches=2", "collection.num_envs=2", "collection.rollout_steps=8"]
    found = records("policy", *small, "--steps", "400")
    assert [name for _, name in found] == ["taugrad, hand-written loop", "taugrad, Lightning"]
