"""Benchmarks. All sides run in turn, once a round; a ratio is that of medians, with the least and most of any round.

python scripts/bench.py op: a hard Gumbel-Softmax sample and its gradient next to torch's, torch.compile's and Pyro's,
ReinMax next to its authors', and a copy of the logits, which is the memory's limit.

python scripts/bench.py backward: the softmax's backward without the Jacobian, with it, and torch's own.

python scripts/bench.py train: a step of the categorical VAE in Lightning, with bar and TensorBoard on, next to the
same model, data and optimizer in a hand-written loop, and to the loop that one would write with torch alone. Then the
default VAE and the policy as commands run them, their threads asleep while they wait, and as OpenMP's own default has
them, spinning; each alone on the machine and next to one process that computes.

python scripts/bench.py classes: a step of the semi-supervised classifier with its class marginalized and sampled, at
several numbers of classes.

python scripts/bench.py tokenizers data=image_folder data.source.root=pictures: one autoencoder trained around our
quantizer by several estimators, and around those of vector-quantize-pytorch, with as many codes, steps and pictures.

python scripts/bench.py estimators: bias, variance and cosine of every estimator's gradient next to the exact one, on
two choices among K classes, with the time and the bytes that it takes.

python scripts/bench.py circuit: a compiled circuit of logic gates, with and without the packing of bytes into bits, its
network in torch, and a perceptron in onnxruntime; the circuit of a run, or a random one.

python scripts/bench.py policy: an environment step of the policy's training in Lightning and in a hand-written loop.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

from taugrad.files import user_path

TORCH = "F.gumbel_softmax"
CPU_SHAPES = [(2000, 10), (32, 512), (16384, 64), (256, 32000)]
GPU_SHAPES = [(65536, 16), (32768, 32), (8192, 1024), (16384, 8192), (256, 151936)]
JACOBIAN_BYTES = 2e9  # a larger Jacobian is left out


def parser() -> argparse.ArgumentParser:
    """The command line of `taugrad bench`, without torch, so that its help is there at once."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=count, nargs="+", help="default: torch's")
    common.add_argument("--rounds", type=count, default=7)
    common.add_argument("--json", type=user_path, help="write a list of what was measured here")
    common.add_argument("--plot", type=user_path, help="plot it here, a PNG")
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = found.add_subparsers(dest="bench", required=True)

    op = benches.add_parser("op", parents=[common], help="hard Gumbel-Softmax, forward and backward")
    op.add_argument("--shapes", type=shape_of, nargs="+", help="such as 2000x10; default: some for the device")
    op.add_argument("--device", default="cpu", help="such as cuda")
    op.add_argument("--dtype", choices=["float32", "float64", "float16", "bfloat16"], default="float32")
    op.add_argument("--tau", type=temperature, default=1.0, help="at a low one a softmax is full of denormal numbers")
    op.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    caption = (
        f"ns an element; speedup: {TORCH}'s both over this; saved: bytes for the backward over the logits'. On a "
        "GPU also bandwidth: that of five passes over the logits as a share of a copy's; peak: bytes allocated at most "
        "over the logits'; launches: of kernels, forward and backward"
    )
    op.set_defaults(caption=caption, plotted=("both_ns", "forward + backward, ns an element"))

    backward = benches.add_parser("backward", parents=[common], help="the softmax's backward")
    shapes = [(32, 512), (2000, 10), (16384, 64)]
    backward.add_argument("--shapes", type=shape_of, nargs="+", default=shapes, help="such as 2000x10")
    backward.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    caption = f"bytes: of y or of the Jacobian, which is left out above {JACOBIAN_BYTES:.0e}"
    backward.set_defaults(caption=caption, plotted=("microseconds", "microseconds"))

    train = benches.add_parser(
        "train", parents=[common], help="Lightning next to hand-written loops, and a busy machine"
    )
    train.add_argument("--steps", type=count, default=300, help="of each loop in each round")
    train.add_argument("overrides", nargs="*", help="of the config, such as model.encoder=[] data.batch_size=20")
    caption = "over previous: a step's time over that of the row above; the policy's steps are its environments'"
    train.set_defaults(caption=caption, plotted=("steps_per_second", "steps a second"))

    classes = benches.add_parser("classes", parents=[common], help="a class marginalized and sampled")
    classes.add_argument("--classes", type=count, nargs="+", default=[10, 100])
    classes.add_argument("--steps", type=count, default=6, help="of each loop in each round, half of them not counted")
    classes.add_argument("overrides", nargs="*", help="of the config, such as model.latent_size=10")
    classes.set_defaults(caption=caption, plotted=("milliseconds", "milliseconds a step"))

    policy = benches.add_parser("policy", parents=[common], help="the policy in Lightning next to a hand-written loop")
    policy.add_argument("--steps", type=count, default=20_000, help="environment steps of each loop in each round")
    policy.add_argument("overrides", nargs="*", help="of the config, such as env=acrobot")
    policy.set_defaults(caption=caption, plotted=("steps_per_second", "environment steps a second"))

    tokenizers = benches.add_parser("tokenizers", parents=[common], help="quantizers in one autoencoder of pictures")
    tokenizers.add_argument("--codes", type=count, nargs="+", default=[512, 8192])
    tokenizers.add_argument("--steps", type=count, default=1000, help="optimizer steps of each training")
    tokenizers.add_argument("--batch", type=count, default=64, help="pictures of a step")
    tokenizers.add_argument("--lr", type=float, default=1e-3)
    tokenizers.add_argument("--seeds", type=int, nargs="+", default=[0], help="the numbers are means over them")
    tokenizers.add_argument("--only", nargs="+", help="names of those to run, or parts of them")
    tokenizers.add_argument("overrides", nargs="*", help="of the config, such as data=image_folder data.source.root=x")
    caption = (
        "mse: of intensities in [0, 1], on the test split; mse_sd: its deviation over seeds; psnr: in dB; in use: share"
        " of the codes that stand for any place of a test picture"
    )
    tokenizers.set_defaults(caption=caption, plotted=("psnr", "PSNR, dB"))

    estimators = benches.add_parser("estimators", parents=[common], help="the gradient of every estimator")
    estimators.add_argument("--classes", type=choices, nargs="+", default=[2, 10, 64, 1024])
    estimators.add_argument("--rows", type=count, default=4, help="pairs of choices")
    estimators.add_argument("--draws", type=groups, default=1000, help="gradients of each estimator, a multiple of ten")
    estimators.add_argument("--tau", type=temperature, default=1.0)
    caption = (
        "bias and variance relative to the exact gradient's norm and its square; cosine: mean of one draw's; saved: "
        "bytes for the backward over the logits', f's own included"
    )
    estimators.set_defaults(caption=caption, plotted=("cosine", "cosine of one draw to the exact gradient"))

    circuit = benches.add_parser("circuit", parents=[common], help="a compiled circuit of logic gates")
    circuit.add_argument("--run", type=user_path, help="a run of model=logic_gates; default: a random circuit")
    circuit.add_argument("--gates", type=tens, default=8000, help="of a layer of the random circuit of ten classes")
    circuit.add_argument("--depth", type=count, default=3, help="layers of the random circuit")
    circuit.add_argument("--hidden", type=count, nargs="+", default=[256], help="units of the perceptron's layers")
    circuit.add_argument("--images", type=count, default=4096, help="of a call")
    caption = (
        "ns: an image; bytes: of the compiled library, of the ONNX file. The circuit runs on one thread, whatever "
        "--threads says; the last two on as many as it says"
    )
    circuit.set_defaults(caption=caption, plotted=("images_per_second", "images a second"))
    return found


def shape_of(text: str) -> tuple[int, ...]:
    """The sizes in a text such as 32x512."""
    return tuple(map(count, text.split("x")))


def count(text: str) -> int:
    """A number that is at least 1."""
    return _number(text, int, "a whole number that is at least 1", lambda n: n >= 1)


def choices(text: str) -> int:
    """A number of classes that leaves a choice."""
    return _number(text, int, "a whole number that is at least 2", lambda n: n >= 2)


def tens(text: str) -> int:
    """A multiple of ten: of gates, for ten classes."""
    return _number(text, int, "a multiple of ten that is at least 10", lambda n: n >= 10 and not n % 10)


def groups(text: str) -> int:
    """A number of draws, measured in ten groups of at least two."""
    return _number(text, int, "a multiple of ten that is at least 20", lambda n: n >= 20 and not n % 10)


def temperature(text: str) -> float:
    """A positive finite number."""
    return _number(text, float, "a positive finite number", lambda tau: 0 < tau < math.inf)


def _number(text: str, kind: Callable[[str], Any], what: str, fits: Callable[[Any], bool]) -> Any:
    try:
        if fits(number := kind(text)):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be {what}, got {text}")
