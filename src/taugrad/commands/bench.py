"""The benchmarks of `taugrad bench`; `bench_arguments` explains them and parses their command line."""

import argparse
import gc
import importlib.util
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from taugrad import GumbelRao, ReinMax, gumbel_softmax
from taugrad.commands import bench_circuits as circuits
from taugrad.commands import bench_estimators as estimators
from taugrad.commands import bench_loops as loops
from taugrad.commands import bench_tokenizers as tokenizers
from taugrad.commands.bench_arguments import CPU_SHAPES, GPU_SHAPES, JACOBIAN_BYTES, TORCH, parser
from taugrad.commands.bench_processes import busy_process, process
from taugrad.errors import ConfigError
from taugrad.files import require_file, require_picture, writing
from taugrad.ops import _fused
from taugrad.ops.softmax import softmax_backward, softmax_backward_by_jacobian

Record = dict[str, Any]  # measurements of one contestant at one shape and number of threads

_SLICE = 0.04  # seconds that a contestant runs at a time
_GRAPHS, _GRAPHS_BYTES = 64, 1e8  # at most so many, and so large, are built before their backwards are timed
_TRAIN = ("experiment=deep_cat_vae", "estimator=st_gumbel_softmax", "model.latents=30")  # 784-512-256-(30x10)

COMPILED, COPY = "F.gumbel_softmax, compiled", "copy of the logits"
OURS, OWN, BY_JACOBIAN = "taugrad.softmax_backward", "torch._softmax_backward_data", "Jacobian product"


def bench_op(arguments: argparse.Namespace) -> list[Record]:
    """Measure the samplers at every shape; Gumbel-Rao only where its Jacobians are smallest, because it is slow."""
    device = device_of(arguments.device)
    shapes = arguments.shapes or (CPU_SHAPES if device.type == "cpu" else GPU_SHAPES)
    smallest = min(shapes, key=lambda shape: math.prod(shape) * shape[-1])
    records = [record for shape in shapes for record in op_at(shape, device, arguments)]
    x = torch.randn(smallest, device=device, dtype=getattr(torch, arguments.dtype), requires_grad=True)
    for draws in (1, 100):
        saved = saved_bytes(GumbelRao(draws).sample, x) / x.nbytes
        records.append({"shape": written(smallest), "contestant": f"taugrad.GumbelRao({draws})", "saved": saved})
    return records


def device_of(name: str) -> torch.device:
    """Return the device of a name: the CPU, or a GPU that is there.

    Raises:
        ConfigError: it is not.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu", *([found.type] if found else [])]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in kinds or (device.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ConfigError(f"--device must be a device that torch finds here, of {' or '.join(kinds)}, got {name}")
    return device


def op_at(shape: Sequence[int], device: torch.device, arguments: argparse.Namespace) -> list[Record]:
    """Measure nanoseconds an element, and saved bytes over the bytes of the logits, of every sampler.

    The backward alone runs on graphs that were built before, so that less of its memory is in the cache than when it
    follows its forward.
    """
    dtype = getattr(torch, arguments.dtype)
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    grad, out = torch.randn_like(x), torch.empty_like(x)
    wait = (lambda: None) if device.type == "cpu" else partial(torch.accelerator.synchronize, device)
    timed = partial(time_call, wait=wait)

    def backward(z: Tensor) -> None:
        z.backward(grad)
        x.grad = None

    logits = partial(list, [x])
    sides: dict[Any, Callable[[], float]] = {}
    candidates = samplers(x, arguments.tau, compiled=arguments.compile)
    saved = {name: saved_bytes(f, x) for name, f in candidates.items()}
    for name, f in candidates.items():
        both = partial(lambda f, x: backward(f(x)), f)
        n = max(1, min(_GRAPHS, int(_GRAPHS_BYTES / (saved[name] + x.nbytes))))
        sides[name, "forward_ns"] = partial(timed, f, logits)
        sides[name, "backward_ns"] = partial(timed, backward, partial(lambda f, n: [f(x) for _ in range(n)], f, n))
        sides[name, "both_ns"] = partial(timed, both, logits)
        for _ in range(3):  # warm up
            both(x)
    sides[COPY, "forward_ns"] = partial(timed, lambda x: out.copy_(x.detach()), logits)
    measured = interleave(sides, arguments.rounds)
    about = {"shape": written(shape)} | ({} if arguments.dtype == "float32" else {"dtype": arguments.dtype})
    records: dict[str, Record] = {name: about | {"contestant": name} for name in [*candidates, COPY]}
    for (name, part), seconds in measured.items():
        records[name][part] = 1e9 * statistics.median(seconds) / x.numel()
    for name in candidates:
        records[name] |= ratio("speedup", measured[TORCH, "both_ns"], measured[name, "both_ns"])
        records[name]["saved"] = saved[name] / x.nbytes
        if device.type != "cpu":
            # Five passes are read x, write z; read dz and x, write dx. A copy is two.
            records[name]["bandwidth"] = 2.5 * records[COPY]["forward_ns"] / records[name]["both_ns"]
            both = partial(lambda f: backward(f(x)), candidates[name])
            records[name] |= {"peak": peak_bytes(both, device) / x.nbytes, "launches": launches(both, device)}
    return list(records.values())


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that a call allocates on a GPU at a time."""
    memory: Any = torch.get_device_module(device)
    memory.reset_peak_memory_stats(device)
    before = memory.memory_allocated(device)
    call()
    return memory.max_memory_allocated(device) - before


def launches(call: Callable[[], Any], device: torch.device) -> int:
    """Number of kernels, fills and copies that a call starts on a GPU."""
    activity = torch.profiler.ProfilerActivity
    own = activity.XPU if device.type == "xpu" else activity.CUDA
    with torch.profiler.profile(activities=[activity.CPU, own]) as profile:
        call()
        torch.accelerator.synchronize(device)
    return sum(event.device_type.name != "CPU" for event in profile.events() or ())


def samplers(x: Tensor, tau: float, *, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from logits to a hard sample, by each library that is installed."""
    found: dict[str, Callable[[Tensor], Tensor]] = {TORCH: lambda x: F.gumbel_softmax(x, tau, hard=True)}
    if compiled:
        torch.compiler.reset()
        call = torch.compile(F.gumbel_softmax)
        try:
            call(x, tau, hard=True).sum().backward()
            found[COMPILED] = lambda x: call(x, tau, hard=True)
        except RuntimeError as error:  # there may be no working compiler
            reason = next(iter(str(error).splitlines()), "")
            print(f"torch.compile is left out at {written(x.shape)}: {reason}", file=sys.stderr)
        x.grad = None
    if importlib.util.find_spec("pyro"):
        from pyro.distributions import RelaxedOneHotCategoricalStraightThrough as Relaxed

        temperature = torch.tensor(tau, device=x.device)
        found["Pyro"] = lambda x: Relaxed(temperature, logits=x).rsample()
    found["taugrad.gumbel_softmax"] = lambda x: gumbel_softmax(x, tau, hard=True)
    if importlib.util.find_spec("reinmax"):
        from reinmax import reinmax

        found["reinmax.reinmax"] = lambda x: reinmax(x, tau)[0]
    found["taugrad.ReinMax"] = lambda x: ReinMax().sample(x, tau)
    return found


def saved_bytes(f: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps for the backward of `f`, each storage once; the logits count where they are kept."""
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t  # a reference, so that no other storage gets this address
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        f(x)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def bench_backward(arguments: argparse.Namespace) -> list[Record]:
    """Measure microseconds of three backwards of a softmax over the last dimension, and the bytes that each reads."""
    records = []
    for shape in arguments.shapes:
        y = torch.randn(shape, dtype=getattr(torch, arguments.dtype)).softmax(-1)
        grad = torch.randn_like(y)
        calls: dict[str, Callable[..., Any]] = {
            OURS: softmax_backward,
            OWN: lambda grad, y: torch._softmax_backward_data(grad, y, -1, y.dtype),  # pyright: ignore
        }
        size = {OURS: y.nbytes, OWN: y.nbytes, BY_JACOBIAN: y.nbytes * shape[-1]}
        if size[BY_JACOBIAN] <= JACOBIAN_BYTES:
            calls[BY_JACOBIAN] = softmax_backward_by_jacobian
        for call in calls.values():  # warm up
            call(grad, y)
        sides = {name: partial(time_call, partial(call, grad), partial(list, [y])) for name, call in calls.items()}
        measured = interleave(sides, arguments.rounds)
        for name, seconds in measured.items():
            record: Record = {"shape": written(shape), "dtype": arguments.dtype, "contestant": name}
            record["microseconds"] = 1e6 * statistics.median(seconds)
            records.append(record | ratio("over_ours", seconds, measured[OURS]) | {"bytes": size[name]})
    return records


def bench_train(arguments: argparse.Namespace) -> list[Record]:
    """Measure steps a second of three loops, and of two commands by how their threads wait."""
    least = 3 * loops.WARM_UP
    if arguments.steps < least:
        raise ConfigError(f"--steps must be at least {least}, {loops.WARM_UP} are not counted; got {arguments.steps}")
    steps = f"trainer.max_steps={arguments.steps}"
    keys = [*_TRAIN, steps, *arguments.overrides]
    sides: dict[str, Callable[[], float]] = {
        "taugrad, hand-written loop": partial(loops.hand_written, keys),
        "taugrad, Lightning": partial(loops.lightning, keys),
        "torch alone, hand-written loop": partial(loops.torch_alone, keys),
    }
    records = [{"shape": "deep VAE", **r} for r in over_previous(sides, arguments.rounds)]
    keys = ["model=cat_vae", steps, *arguments.overrides]
    vae = partial(loops.on_threads, torch.get_num_threads(), loops.lightning, keys)
    keys = ["model=policy", f"collection.max_env_steps={32 * arguments.steps}"]
    policy = partial(loops.on_threads, 1, loops.policy_in_lightning, keys)  # one thread, as in its config
    with process({"OMP_WAIT_POLICY": "passive"}) as asleep, process({}) as spinning:
        ways = {"threads wait asleep": asleep, "threads wait spinning": spinning}
        for where, neighbour in (("alone", nullcontext()), ("busy machine", busy_process())):
            with neighbour:
                for name, command in {"default VAE": vae, "policy": policy}.items():
                    sides = {way: partial(call, command) for way, call in ways.items()}
                    measured = over_previous(sides, arguments.rounds)
                    records += [{"shape": f"{name}, {where}", **r} for r in measured]
    return records


def bench_classes(arguments: argparse.Namespace) -> list[Record]:
    """Measure milliseconds a step for every number of classes, the class marginalized and sampled."""
    keys = ["model=semi_supervised", f"trainer.max_steps={arguments.steps}", *arguments.overrides]
    ways = {"sampled": "st_gumbel_softmax", "marginalized": "enumeration"}
    records: list[Record] = []
    for classes in arguments.classes:
        changed = [*keys, f"model.classes={classes}"]
        sides = {name: partial(loops.hand_written, [*changed, f"estimator={way}"]) for name, way in ways.items()}
        records += [{"shape": f"{classes} classes", **r} for r in over_previous(sides, arguments.rounds)]
    return records


def bench_policy(arguments: argparse.Namespace) -> list[Record]:
    """Measure environment steps a second of two loops."""
    keys = ["model=policy", f"collection.max_env_steps={arguments.steps}", *arguments.overrides]
    by_hand, lightning = partial(loops.policy_by_hand, keys), partial(loops.policy_in_lightning, keys)
    return over_previous({"taugrad, hand-written loop": by_hand, "taugrad, Lightning": lightning}, arguments.rounds)


def bench_tokenizers(arguments: argparse.Namespace) -> list[Record]:
    """Measure what an autoencoder learns around each quantizer: errors, codes in use, milliseconds a step."""
    chosen: dict[int, dict[str, tokenizers.Contestant]] = {}
    for K in arguments.codes:
        every = tokenizers.contestants(K, arguments.steps)
        for part in arguments.only or []:  # also a config's option that follows, which argparse takes for a part
            if not any(part in name for name in every):
                raise ConfigError(f"--only must be parts of the names {'; '.join(every)}, got {part}")
        chosen[K] = {}
        for part in arguments.only or [""]:  # a whole name chooses that one alone
            names = [part] if part in every else [name for name in every if part in name]
            chosen[K] |= {name: every[name] for name in names}
    _, _, data = loops.parts(["run_dir=.", "model=tokenizer", *arguments.overrides])
    train, _, test = data.splits
    records: list[Record] = []
    for K, contestants in chosen.items():
        for name, contestant in contestants.items():
            found = []
            for seed in arguments.seeds:
                settings = (arguments.steps, arguments.batch, arguments.lr, seed)
                found.append(tokenizers.compare(contestant, K, train, test, *settings))
                print(json.dumps({"contestant": name, "seed": seed, **found[-1]}), file=sys.stderr, flush=True)
            record: Record = {"shape": f"{K} codes", "contestant": name}
            record |= {key: statistics.mean(run[key] for run in found) for key in found[0]}
            if len(found) > 1:
                record["mse_sd"] = statistics.stdev(run["mse"] for run in found)
            records.append(record)
    return records


def bench_estimators(arguments: argparse.Namespace) -> list[Record]:
    """Measure bias, variance, cosine, milliseconds and saved bytes of every estimator's gradient."""

    def costs(calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, Record]:
        sides = {
            name: partial(time_call, lambda x, f=f: torch.autograd.grad(f(x).sum(), x), partial(list, [x]))
            for name, f in calls.items()
        }
        measured = interleave(sides, arguments.rounds)
        return {
            name: {"milliseconds": 1e3 * statistics.median(measured[name]), "saved": saved_bytes(f, x) / x.nbytes}
            for name, f in calls.items()
        }

    return [
        record
        for K in arguments.classes
        for record in estimators.measure(K, arguments.rows, arguments.draws, arguments.tau, costs)
    ]


def bench_circuit(arguments: argparse.Namespace) -> list[Record]:
    """Measure images a second of a compiled circuit, of its network in torch and of a perceptron."""
    found = circuits.contestants(arguments.run, arguments.gates, arguments.depth, arguments.hidden, arguments.images)
    for call in found.calls.values():  # warm up
        call()
    sides = {name: partial(time_call, lambda call: call(), partial(list, [call])) for name, call in found.calls.items()}
    measured = interleave(sides, arguments.rounds)
    records: list[Record] = []
    for name, seconds in measured.items():
        each = statistics.median(seconds) / found.images
        record: Record = {"shape": found.shape, "contestant": name, "images_per_second": 1 / each, "ns": 1e9 * each}
        record |= ratio("time_over_circuit", seconds, measured["circuit"])
        records.append(record | ({"bytes": found.bytes[name]} if name in found.bytes else {}))
    return records


def over_previous(sides: dict[str, Callable[[], float]], rounds: int) -> list[Record]:
    """Steps a second of loops that return seconds a step, and the time of each over that of the one before."""
    measured = interleave(sides, rounds)
    records: list[Record] = []
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        record: Record = {"contestant": name, "steps_per_second": 1 / median, "milliseconds": 1e3 * median}
        if records:
            record |= ratio("over_previous", seconds, measured[records[-1]["contestant"]])
        records.append(record)
    return records


def time_call(
    call: Callable[[Any], Any], prepare: Callable[[], list[Any]], wait: Callable[[], Any] = lambda: None
) -> float:
    """Seconds a call, each on an item of a list that `prepare` returns; the time of `prepare` is not counted.

    `wait` returns when the device has done all.
    """
    elapsed, calls = 0.0, 0
    gc.disable()
    while elapsed < _SLICE:
        items = prepare()
        wait()
        start = time.perf_counter()
        for item in items:
            call(item)
        wait()
        elapsed += time.perf_counter() - start
        calls += len(items)
    gc.enable()
    return elapsed / calls


def interleave(sides: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """Measure each side once in every round, in turn."""
    measured: dict[Any, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def ratio(name: str, above: list[float], below: list[float]) -> Record:
    """The ratio of medians, and the least and the most of any round."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    medians = statistics.median(above) / statistics.median(below)
    return {name: medians, f"{name}_min": min(each), f"{name}_max": max(each)}


def machine(device: torch.device) -> Record:
    """Facts about this machine and its software that every number depends on."""
    info = Path("/proc/cpuinfo")  # on Linux; platform names the processor elsewhere
    models = re.findall(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.is_file() else []
    return {
        "torch": torch.__version__,
        "backend": _fused.backend(str(device)),
        "bound": _fused.bound(),  # to torch's C++ autograd, by python -m taugrad.ops.native
        "cpu": [*models, platform.processor()][0],
        "date": time.strftime("%Y-%m-%d"),
    } | ({} if device.type == "cpu" else {"gpu": torch.get_device_module(device).get_device_name(device)})


def show(records: list[Record], title: str, caption: str) -> None:
    """Print a table: a column for each key, a ratio with its spread."""
    keys = list(dict.fromkeys(key for r in records for key in r if not key.endswith(("_min", "_max"))))
    table = Table(*(key.replace("_", " ") for key in keys), title=title, caption=caption)
    for record in records:
        table.add_row(*(cell(record, key) for key in keys))
    Console(width=None if sys.stdout.isatty() else 120).print(table)  # a file has no width


def cell(record: Record, key: str) -> str:
    """One value as text."""
    value = record.get(key, "-")
    if isinstance(value, str):
        return value
    spread = [number(record[end]) for end in (f"{key}_min", f"{key}_max") if end in record]
    return f"{number(value)} ({' to '.join(spread)})" if spread else number(value)


def number(value: float) -> str:
    """Text of a number: three digits, or all digits of a large one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plot(records: list[Record], path: Path, key: str, label: str) -> None:
    """Plot bars of `key`: a panel for each number of threads, a group for each shape, the copy as a line across it."""
    from matplotlib.figure import Figure

    threads, shapes = (list(dict.fromkeys(r.get(k, "") for r in records)) for k in ("threads", "shape"))
    names = list(dict.fromkeys(r["contestant"] for r in records if key in r))
    width = 0.85 / len(names)
    figure = Figure(figsize=(4 + 0.35 * len(names) * len(shapes), 4.2 * len(threads)), layout="constrained")
    for axes, n in zip(figure.subplots(len(threads), 1, squeeze=False, sharey=True)[:, 0], threads, strict=True):
        panel = [(shapes.index(r.get("shape", "")), r) for r in records if r["threads"] == n]
        for i, name in enumerate(names):
            bars = {group: r[key] for group, r in panel if r["contestant"] == name}
            places = [group + (i - (len(names) - 1) / 2) * width for group in bars]
            container = axes.bar(places, list(bars.values()), width, label=name)
            axes.bar_label(container, list(map(number, bars.values())), rotation=90, padding=3, fontsize=9)
        copies = {group: r["forward_ns"] for group, r in panel if r["contestant"] == COPY}
        if copies:
            ends = [[group + end for group in copies] for end in (-0.45, 0.45)]
            axes.hlines(list(copies.values()), *ends, "black", "--", label=COPY)
        axes.set(title=f"{n} thread{'s' * (n > 1)}", ylabel=label, yscale="log" if len(shapes) > 1 else "linear")
        axes.set_xticks(range(len(shapes)), shapes)
        axes.margins(y=0.3)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)


def written(shape: Sequence[int]) -> str:
    """Text of a shape, as a command line has it."""
    return "x".join(map(str, shape))


def main(command: Sequence[str] | None = None) -> None:
    """Run one benchmark, once for each number of threads."""
    given = parser().parse_args(command)
    measures = (
        bench_op,
        bench_backward,
        bench_train,
        bench_classes,
        bench_policy,
        bench_tokenizers,
        bench_estimators,
        bench_circuit,
    )
    measure = {f.__name__.removeprefix("bench_"): f for f in measures}[given.bench]
    if given.json:  # a path that cannot be written is found before the measuring
        require_file("--json", given.json)
    if given.plot:
        require_picture("--plot", given.plot)
    device = device_of(getattr(given, "device", "cpu"))
    facts = machine(device) | {"command": " ".join(sys.argv[1:] if command is None else command)}
    records: list[Record] = []
    for threads in given.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        measured = measure(given)
        backend = f"{facts['backend']}, bound" if facts["bound"] and facts["backend"] == "native" else facts["backend"]
        where = facts.get("gpu", f"{threads} threads")
        about = f"{given.bench}, {where}, {given.rounds} rounds, torch {facts['torch']}, {backend}"
        show(measured, about, given.caption)
        records += [{"bench": given.bench, "threads": threads, **record, **facts} for record in measured]
    if given.json:
        with writing(given.json):
            given.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    if given.plot:
        with writing(given.plot):
            plot(records, given.plot, *given.plotted)
