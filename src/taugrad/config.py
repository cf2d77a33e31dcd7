"""Configs: resolving them, checking them against signatures, instantiating them.

A config node with a `_target_` is a call, and the signature of the called class or function is its schema. An unknown
argument, a missing one and a value of another type than annotated are errors that name the key, found before anything
is built. A user's own class needs no schema besides its signature either.
"""

import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from taugrad.errors import ConfigError, TaugradError

CONF = Path(__file__).parent / "conf"
if not CONF.is_dir():  # a symbolic link in a checkout, which is a file on Windows
    CONF = Path(__file__).parents[2] / "conf"

Config = dict[str, Any]

_HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_SCALARS = (bool, int, float, str)


T = TypeVar("T")


@dataclass(frozen=True)
class Keys:
    """Dotted keys of a config, for errors that name the key that a user sets."""

    own: Sequence[str] = ()  # keys that hold a value
    referring: Mapping[str, str] = field(default_factory=dict)  # keys that refer to another one, and which

    def set_as(self, key: str) -> str:
        """Return the key that a user sets for `key`, which may lie in a node that refers to another.

        >>> Keys(referring={"task.model": "model", "model.tau": "tau"}).set_as("task.model.tau.start")
        'tau.start'
        """
        place = ""
        for name in key.split("."):
            place, seen = _join(place, name), set[str]()
            while place in self.referring and place not in seen:
                seen.add(place)
                place = self.referring[place]
        return place

    def like(self, name: str, key: str) -> list[str]:
        """Keys apart from `key` that end in `name` or spell it with dots: `evaluation.every` for `evaluation_every`.

        Neither what `key` holds nor what holds it is one: for `tau.tau`, `tau` is no help.
        """
        own, unknown = f"{key}.", _join(key, name)
        outside = (k for k in self.own if k != unknown and not f"{k}.".startswith(own) and not own.startswith(f"{k}."))
        return [k for k in outside if k.rpartition(".")[2] == name or k.replace(".", "_") == name]


def read(schema: type[T], config: DictConfig) -> T:
    """Read a config into a dataclass whose fields are its top-level keys, resolved and checked as by `resolve`.

    A top-level key that starts with an underscore is no field: a preset keeps values there that other keys refer to.

    Raises:
        ConfigError: a value is missing, does not resolve, or does not fit its field or its `_target_`.
    """
    fields = {name: value for name, value in _plain(config).items() if not str(name).startswith("_")}
    keys = keys_of(config)
    plain = fit_to_signature(schema, fields, keys=keys)  # before the nodes, because values in them may refer to these
    _require(schema, plain, "")
    return schema(**_checked(plain, "", keys))


def resolve(config: DictConfig) -> dict[str, Any]:
    """Turn a config into dicts, lists and scalars, interpolations resolved, arguments checked; errors as for `read`."""
    return _checked(_plain(config), "", keys_of(config))


def instantiate(config: Mapping[str, Any]) -> Any:
    """Call the `_target_` of a node with its other keys as arguments; nested nodes are built first.

    `_partial_: true` returns the call without making it; `_args_` are positional arguments; `_recursive_: false` passes
    nested nodes on without building them.

    Raises:
        ConfigError: there is no `_target_`, or a class or function refuses its arguments; the message names it.

    >>> instantiate({"_target_": "fractions.Fraction", "numerator": 3, "denominator": 6})
    Fraction(1, 2)
    """
    if "_target_" not in config:
        raise ConfigError(f"a _target_ is missing, the import path of what is to be built, in {dict(config)}")
    return _built(config)


def _built(node: Any) -> Any:
    """Build the nodes with a `_target_` in a value of a config."""
    if isinstance(node, list):
        return [_built(child) for child in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {name: _built(child) for name, child in node.items()}
    build = _built if node.get("_recursive_", True) else lambda child: child
    path, target = node["_target_"], _target(node["_target_"], "_target_")
    arguments = {name: build(child) for name, child in node.items() if name not in _HYDRA_KEYS}
    call = functools.partial(target, *map(build, node.get("_args_", ())), **arguments)
    if node.get("_partial_"):
        return call
    try:
        return call()
    except TaugradError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ImportError as error:
        raise ConfigError(f"{path} needs a package that is missing: {error}") from error


def fit_to_signature(
    call: Callable[..., Any], arguments: Mapping[str, Any], key: str = "", keys: Keys | None = None
) -> dict[str, Any]:
    """Convert arguments to the types that a class or function annotates, as far as a config can express them.

    Raises:
        ConfigError: an argument is unknown to `call` or not of its type; the message starts with `key`, of the node
            that holds it in a config of these `keys`, and its name.
    """
    parameters = inspect.signature(call).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    annotations, keys = _annotations(call), keys or Keys()
    fitted = {}
    for name, value in arguments.items():
        # A function with **kwargs would accept a misspelled argument, and may ignore it.
        known = name in parameters
        close = [] if known else difflib.get_close_matches(name, parameters, n=1, cutoff=0.85 if takes_any else 0.6)
        if not known and (close or not takes_any):
            unknown = f"{_join(key, name)} is not an argument of {full_name(call)}"
            likely = keys.like(name, key)
            if not close and len(likely) == 1:
                raise ConfigError(f"{unknown}; did you mean {likely[0]}?")
            meant = f"did you mean {_join(key, close[0])}? It" if close else "it"
            raise ConfigError(f"{unknown}; {meant} takes {', '.join(parameters)}")
        fitted[name] = _convert(value, annotations.get(name, Any), keys.set_as(_join(key, name)))
    return fitted


def keys_of(config: DictConfig) -> Keys:
    """Collect the keys of a config whose interpolations are not resolved yet."""
    own: list[str] = []
    referring: dict[str, str] = {}

    def collect(node: Any, key: str) -> None:
        if isinstance(node, Node) and node._is_interpolation():
            if other := re.fullmatch(r"\$\{(\w+(?:\.\w+)*)\}", str(node._value())):
                referring[key] = other[1]
            return
        if key:
            own.append(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            for name in node:
                collect(node._get_node(name), _join(key, str(name)))

    collect(config, "")
    return Keys(own, referring)


def _plain(config: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        lacking = str(error).split("'")[1]
        raise ConfigError(f"{error.full_key} refers to {lacking}, which the config lacks") from error
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{key} must be given, as {key}=..., got none") from error
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _checked(node: Any, key: str, keys: Keys) -> Any:
    if isinstance(node, list):
        return [_checked(child, _join(key, str(i)), keys) for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    node = {name: _checked(child, keys.set_as(_join(key, str(name))), keys) for name, child in node.items()}
    if "_target_" not in node:
        return node
    target = _target(node["_target_"], _join(key, "_target_"))
    arguments = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
    fitted = fit_to_signature(target, arguments, key, keys)
    if not node.get("_partial_") and "_args_" not in node:
        _require(target, fitted, key)
    return node | fitted


def _target(path: Any, key: str) -> Callable[..., Any]:
    try:
        target = hydra.utils.get_object(path)
    except Exception as error:  # the imported code may raise anything
        raise ConfigError(f"{key} must be the import path of a class or function, got {path}: {error}") from error
    if not callable(target):
        raise ConfigError(f"{key} must be the import path of a class or function, got {path}")
    return target


def _require(target: Callable[..., Any], arguments: Mapping[str, Any], key: str) -> None:
    for name, parameter in inspect.signature(target).parameters.items():
        positional = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if positional and parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"{_join(key, name)} is missing: {full_name(target)} needs it")


def _annotations(call: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call.__init__ if inspect.isclass(call) else call)
    except (NameError, TypeError):  # an annotation may exist only for a type checker
        return {}


def _convert(value: Any, annotation: Any, key: str) -> Any:
    schema = _schema(annotation)
    if isinstance(value, dict):
        if "_target_" not in value and not _may_be_mapping(annotation):
            name = inspect.formatannotation(annotation).replace("typing.", "").replace("NoneType", "null")
            raise ConfigError(f"{key} must be {name.replace('None', 'null')}, or a config with a _target_, got {value}")
        return value
    if (typing.get_origin(annotation) or annotation) in (dict, Mapping):  # which takes nothing else
        raise ConfigError(f"{key} must be a config, of keys and values, got {_shown(value)}")
    literals = _literals(annotation)
    if value in literals:
        return value
    if schema is None:  # a type that a config cannot express
        return value
    if type(value) in (typing.get_args(schema) if _is_union(schema) else (schema,)):  # a third of a ms for OmegaConf
        return value
    try:
        node = OmegaConf.structured(_holder(schema))
        node.value = value
    except OmegaConfBaseException as error:
        expected = " or ".join([*map(repr, literals), _described(schema)])
        raise ConfigError(f"{key} must be {expected}, got {_shown(value)}") from error
    return OmegaConf.to_container(node)["value"]  # pyright: ignore


@functools.cache
def _holder(schema: Any) -> type:
    """Make a dataclass with a value of a type, by which OmegaConf converts values to it."""
    return make_dataclass("Holder", [("value", schema)])


def _schema(annotation: Any) -> Any:
    """Return the part of a type that a config can express (scalars, lists of them, their unions), or None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SCALARS:
        return annotation
    if origin in (list, Sequence) and arguments[0] in _SCALARS:
        return list[arguments[0]]
    if not _is_union(annotation):
        return None
    members = [member for member in map(_schema, arguments) if member is not None]
    if not members or (len(members) > 1 and any(member not in _SCALARS for member in members)):
        return None
    return typing.Union[(*members, None)] if type(None) in arguments else typing.Union[tuple(members)]  # noqa: UP007


def _literals(annotation: Any) -> list[Any]:
    """Return the values of a `Literal`, also of one in a union."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(arguments)
    return [value for member in arguments if _is_union(annotation) for value in _literals(member)]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _may_be_mapping(annotation: Any) -> bool:
    """Return whether a type may be given as a config without a `_target_`; plain types and most classes may not."""
    if _is_union(annotation):
        return any(map(_may_be_mapping, typing.get_args(annotation)))
    origin = typing.get_origin(annotation) or annotation
    if not inspect.isclass(origin) or origin in (object, Any):  # a class from Python 3.11 on
        return origin is not typing.Literal
    return issubclass(origin, Mapping) or is_dataclass(origin)


def _shown(value: Any) -> str:
    """Text of a value, as in a config file."""
    return "null" if value is None else repr(value)


def _described(schema: Any) -> str:
    members = [m for m in typing.get_args(schema) if m is not type(None)] if schema not in _SCALARS else []
    if not members or typing.get_origin(schema) is list:
        return inspect.formatannotation(schema)
    null = ["null"] * (type(None) in typing.get_args(schema))
    return " or ".join([*map(_described, members), *null])


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def full_name(call: Callable[..., Any]) -> str:
    """Return the import path of a class or function."""
    return f"{call.__module__}.{call.__qualname__}"


def in_sweep() -> bool:
    """Return whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
