"""The commands: `taugrad train model=cat_vae` anywhere, or `python scripts/train.py model=cat_vae` in a checkout.

Each command imports what it needs when it runs: torch and Lightning take seconds.
"""

import argparse
import difflib
import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from taugrad.config import CONF, in_sweep
from taugrad.errors import TaugradError
from taugrad.files import expand_override, user_path
from taugrad.threads import wait_passively

P = ParamSpec("P")
R = TypeVar("R")


def _user_errors() -> tuple[type[Exception], ...]:
    """Error classes of ours, and Lightning's for its arguments once Lightning is imported, which takes seconds."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (TaugradError, lightning.MisconfigurationException) if lightning else (TaugradError,)


def one_sentence(main: Callable[P, R]) -> Callable[P, R]:
    """Let a script end on a user's error with its sentence and exit code 1; the traceback shows with `debug=true`.

    A job of a sweep prints the sentence, or the traceback of any other error, and raises: an exit would end the sweep,
    and Hydra does not print what it catches.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except _user_errors() as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1" or (args and getattr(args[0], "debug", False)):
                raise
            if in_sweep():
                sys.stderr.write(f"error: job {HydraConfig.get().job.num}: {error}\n")
                raise
            sys.exit(f"error: {error}")
        except Exception as error:
            if in_sweep() and type(error).__name__ != "TrialPruned":
                traceback.print_exc()
            raise

    return run


def _command(function: Callable[[DictConfig], Any]) -> Callable[[], Any]:
    """Wrap a function as a command of Hydra, with the config of its name; a refused command line gets suggestions."""
    began = False

    @functools.wraps(function)
    def task(config: DictConfig) -> Any:
        nonlocal began
        began = True
        _escape_output()  # again, because a launcher may have started this process
        return one_sentence(function)(config)

    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=function.__name__)(task)

    @functools.wraps(function)
    def run() -> Any:
        nonlocal began
        began = False
        wait_passively()
        _escape_output()
        sys.argv[1:] = map(expand_override, sys.argv[1:])  # before Hydra makes directories of them
        sys.argv[1:] = _accepting(sys.argv[1:], function.__name__)
        try:
            return main()
        except SystemExit as error:
            if error.code == 1 and not began:
                sys.stderr.writelines(f"did you mean {close}?\n" for close in _close(sys.argv[1:]))
            raise

    return run


def _escape_output() -> None:
    """Write a character that the output's encoding lacks as an escape; on Windows a file's encoding has 256."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _accepting(arguments: list[str], config_name: str) -> list[str]:
    """Let a command line set any argument that a node's `_target_` takes, and set a group to null.

    Hydra refuses a key that no file has unless it starts with a plus. A key in a node with a `_target_` gets one, and
    `taugrad.config` refuses it if it is not in the signature. Hydra refuses all other unknown keys. `group=null`
    becomes `~group`, which is how Hydra switches a group off.
    """
    arguments = [re.sub(r"^(\w+)=null$", r"~\1", a) if (CONF / a.partition("=")[0]).is_dir() else a for a in arguments]
    keys = {a: a.partition("=")[0] for a in arguments if re.match(r"(?!hydra\.)[A-Za-z_]\w*\.[\w.]+=", a)}
    if not keys:
        return arguments
    options = get_args_parser().parse_known_args(arguments)[0]
    search = [f"hydra.searchpath=[file://{Path(options.config_dir).absolute()}]"] if options.config_dir else []
    try:
        others = [o for o in OverridesParser.create().parse_overrides(options.overrides) if o.input_line not in keys]
        swept = [o.key_or_group for o in others if o.is_sweep_override() and "." not in o.key_or_group]
        lines = [line for o in others if (line := _first(o)) is not None]
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            config = compose(options.config_name or config_name, [*search, *lines])
            groups = [name for name in swept if name not in config or OmegaConf.is_dict(config[name])]
            fixed = [line for o in others if not o.is_sweep_override() and (line := o.input_line) is not None]
            # Hydra first sets the keys where the groups are not chosen yet.
            unchosen = compose(options.config_name or config_name, [*search, *fixed]) if groups else config
        lacking = {a for a, key in keys.items() if _lacks(config, key.split("."), sometimes=bool(groups))}
        lacking |= {a for a, key in keys.items() if _has(config, key) and not _has(unchosen, key)}
    except (HydraException, OmegaConfBaseException):  # Hydra raises the same error with its own message
        return arguments
    return [f"++{a}" if a in lacking else a for a in arguments]


def _first(override: Override) -> str | None:
    """Return an override, with the first value that is not null if it sweeps a list; None if it sweeps no list."""
    if not override.is_sweep_override():
        return override.input_line
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return None
    first = next((value for value in override.sweep_string_iterator() if value != "null"), None)
    return first and f"{override.get_key_element()}={first}"


def _lacks(config: DictConfig, names: list[str], *, sometimes: bool) -> bool:
    """Return whether a key is lacking in a node with a `_target_`, or may be in some jobs of a sweep."""
    node: Any = config
    called = False
    for name in names:
        called = called or (isinstance(node, DictConfig) and "_target_" in node)
        if isinstance(node, DictConfig) and name not in set(node.keys()):  # `in` would be False for a ??? too
            return called
        if isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name):
            return False  # a reference to another node, where the key can be set
        node = OmegaConf.select(node, name) if OmegaConf.is_config(node) else None
    return called and sometimes


def _has(config: DictConfig, key: str) -> bool:
    """Return whether a config has a key, without resolving a reference to another node."""
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in set(node.keys()):
            return False
        node = node._get_node(name)
    return True


def _close(overrides: list[str]) -> list[str]:
    """Suggest close spellings for the overrides that name no group, option or key."""
    groups = {d.relative_to(CONF).as_posix(): d for d in CONF.rglob("*") if d.is_dir() and any(d.glob("*.yaml"))}
    keys_anywhere = set(
        re.findall(r"^ *(\w+):", "\n".join(f.read_text(encoding="utf-8") for f in CONF.rglob("*.yaml")), re.MULTILINE)
    )
    found = []
    for override in overrides:
        name, _, value = override.partition("=")
        first, _, key = name.partition(".")
        if name.startswith(("+", "~", "-", "hydra")) or all(part in keys_anywhere for part in key.split(".")):
            continue
        if name in groups:
            known = {f"{name}={file.stem}" for file in groups[name].glob("*.yaml")}
            found += [(f"{name}={option}", known) for option in value.split(",")]
        elif key and first in groups:
            keys = {k for file in groups[first].glob("*.yaml") for k in OmegaConf.load(file)}
            found.append((f"{first}.{key.split('.')[0]}", {f"{first}.{k}" for k in keys}))
        else:
            found.append((name, groups.keys() | OmegaConf.load(CONF / "train.yaml").keys()))
    closest = [difflib.get_close_matches(name, known, n=1) for name, known in found if name not in known]
    return [match for matches in closest for match in matches]


@_command
def train(config: DictConfig) -> float | list[float]:
    """Train a model, evaluate it, return its objective or objectives."""
    from taugrad.commands import train

    return train.train(config)


@_command
def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate a run from its checkpoint, return its test metrics."""
    from taugrad.commands import evaluate

    return evaluate.evaluate(config)


@_command
def probe(config: DictConfig) -> None:
    """Compare gradient estimators with the exact gradient."""
    from taugrad.commands.probe import run_probe

    run_probe(config, CONF / "estimator")


@_command
def export(config: DictConfig) -> None:
    """Write a run's model, sampling replaced by argmax, to an ONNX file or a program of torch.export."""
    from taugrad.commands.export import export as write

    write(config)


def bench() -> None:
    """Time the samplers and the training loops, with the environment variables as the user set them."""
    from taugrad.commands.bench_arguments import parser

    parser().parse_args()  # answers --help before torch is imported
    from taugrad.commands import bench

    one_sentence(bench.main)()


@one_sentence
def compare() -> None:
    """Plot a metric of several runs, with intervals over seeds."""
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, description="Plot a metric of several runs.")
    parser.add_argument("runs", nargs="+", type=user_path, help="directories of runs, or of sweeps of runs")
    parser.add_argument("--metric", default="rollout/ep_rew_mean", help="a tag of TensorBoard's scalars")
    parser.add_argument("--out", type=user_path, default=Path("curves.png"))
    arguments = parser.parse_args()
    wait_passively()
    from taugrad.commands.compare import compare as plot

    _escape_output()
    for label, count in plot(arguments.runs, arguments.metric, arguments.out).items():
        sys.stdout.write(f"{count} runs of {label}\n")
    sys.stdout.write(f"the curves are in {arguments.out}\n")


_COMMANDS: dict[str, Callable[[], object]] = {f.__name__: f for f in (train, evaluate, probe, export, bench, compare)}


def _complete() -> None:
    """Complete a line for a shell, or print the code that makes it ask; Hydra does both, but knows no commands."""
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    name, named, line = line.lstrip().partition(" ")
    if not any(argument.startswith("query=") for argument in sys.argv):
        train()
    elif not named:
        sys.stdout.write("\n".join([*_COMMANDS, ""]))
    elif name in _COMMANDS and _COMMANDS[name] not in (bench, compare):  # whose arguments, files, a shell completes
        os.environ["COMP_LINE"] = f"{program} {line}"
        _COMMANDS[name]()


def main() -> None:
    """Run the command that the first argument names, with the others as its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in _COMMANDS and "LOCAL_RANK" in os.environ:
        sys.argv.insert(1, name := "train")  # Lightning starts processes by sys.argv, which names no command any more
    if name in ("-h", "--help"):
        lines = (f"  taugrad {name:<9} {str(command.__doc__).splitlines()[0]}" for name, command in _COMMANDS.items())
        sys.stdout.write("\n".join(["taugrad trains networks through discrete choices.", "", *lines, ""]))
        sys.stdout.write("\ntaugrad COMMAND --help shows what a command takes.\n")
        return
    if name in ("-sc", "--shell-completion"):
        _complete()
        return
    if name not in _COMMANDS:
        sys.exit(f"error: the command must be one of {', '.join(_COMMANDS)}, got {name}")
    program = sys.argv[0] if name == "train" else f"{sys.argv[0]} {name}"  # the first words of a usage
    sys.argv = [program, *sys.argv[2:]]
    _COMMANDS[name]()
