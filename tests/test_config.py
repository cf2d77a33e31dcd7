from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from taugrad.config import fit_to_signature, instantiate, read, resolve
from taugrad.errors import ConfigError, DataError
from taugrad.schedules import Cyclical, Linear

LINEAR = {"_target_": "taugrad.schedules.Linear", "start": 1.0, "end": 0.5, "steps": 10}


def call(
    a: int,
    b: float = 1.0,
    c: str | None = None,
    d: list[int] | None = None,
    e: float | torch.Tensor = 1.0,
    g: Literal["a", "b"] | bool = False,
    h: Mapping[str, Any] = {},
): ...


class Refuses:
    def __init__(self, why: str) -> None:
        raise DataError(why)


def test_interpolations_are_resolved_into_plain_containers():
    config = OmegaConf.create({"n": 3, "tau": LINEAR | {"steps": "${n}"}, "list": ["${n}"]})
    plain = resolve(config)
    assert plain == {"n": 3, "tau": LINEAR | {"steps": 3}, "list": [3]}
    assert (type(plain), type(plain["tau"]), type(plain["list"])) == (dict, dict, list)


def test_values_take_the_types_that_the_signature_annotates():
    fitted = fit_to_signature(call, {"a": 1, "b": 2, "c": None, "d": [1, 2], "e": 3})
    assert fitted == {"a": 1, "b": 2.0, "c": None, "d": [1, 2], "e": 3.0}
    assert isinstance(fitted["b"], float)


def test_what_may_be_anything_may_be_a_mapping_too():
    def make(id: str, grid: Any = None, **options: Any) -> None: ...

    arguments = {"id": "highway-v0", "grid": {"rows": 3}, "config": {"lanes": 3}}
    assert fit_to_signature(make, arguments) == arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"a": "abc"}, "key.a must be int, got 'abc'"),
        ({"a": 1.5}, "key.a must be int, got 1.5"),
        ({"a": None}, "key.a must be int, got null"),
        ({"b": "fast"}, "key.b must be float, got 'fast'"),
        ({"d": 3}, r"key.d must be .*list\[int\].*, got 3"),
        ({"d": ["x"]}, r"key.d must be .*list\[int\].*, got \['x'\]"),
        ({"e": "x"}, "key.e must be float, got 'x'"),
        ({"c": {"x": 1}}, r"key.c must be str \| null, or a config with a _target_, got {'x': 1}"),
        ({"g": "e"}, "key.g must be 'a' or 'b' or bool, got 'e'"),
        ({"h": None}, "key.h must be a config, of keys and values, got null"),
        ({"f": 1}, "key.f is not an argument of .*call; it takes a, b, c, d, e, g, h"),
    ],
)
def test_a_wrong_type_or_name_is_an_error_that_names_the_key(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fit_to_signature(call, arguments, "key")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"tau": LINEAR | {"steps": "many"}}, "tau.steps must be int, got 'many'"),
        ({"tau": LINEAR | {"stepz": 1}}, "tau.stepz is not an argument of taugrad.schedules.Linear"),
        ({"list": [LINEAR | {"steps": "x"}]}, "list.0.steps must be int, got 'x'"),
        (
            {"a": {"b": {"_target_": "taugrad.schedules.Join", "boundaries": []}}},
            "a.b.schedules is missing: taugrad.schedules.Join needs it",
        ),
        (
            {"tau": {"_target_": "taugrad.schedules.Nope"}},
            "tau._target_ must be the import path of a class or function, got taugrad.schedules.Nope",
        ),
        ({"tau": {"_target_": "taugrad.estimators._MOST_CONFIGURATIONS"}}, "tau._target_ must be the import path"),
        ({"steps": "${absent}"}, "absent"),
        ({"run": "???"}, "run"),
    ],
)
def test_resolving_finds_what_does_not_fit_before_anything_is_built(config, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(OmegaConf.create(config))


def test_a_partial_call_may_lack_arguments():
    optimizer = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1}
    assert resolve(OmegaConf.create({"optimizer": optimizer}))["optimizer"] == optimizer


def test_instantiate_builds_nested_nodes_or_leaves_them_plain():
    node = {"_target_": "taugrad.schedules.Cyclical", "schedule": LINEAR, "period": 5}
    assert instantiate(node) == Cyclical(Linear(1.0, 0.5, 10), period=5)
    with pytest.raises(ConfigError, match=r"taugrad.schedules.Cyclical: schedule must be schedules"):
        instantiate(node | {"_recursive_": False})


def keep(*args, **kwargs):
    return args, kwargs


KEEP = {"_target_": f"{__name__}.keep"}
BUILT = Linear(1.0, 0.5, 10)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"a": LINEAR, "b": None, "c": "text"}, ((), {"a": BUILT, "b": None, "c": "text"})),
        ({"a": [1, LINEAR, [LINEAR]]}, ((), {"a": [1, BUILT, [BUILT]]})),
        ({"a": {"b": {"c": LINEAR, "d": 2}}}, ((), {"a": {"b": {"c": BUILT, "d": 2}}})),
        ({"_args_": [1, LINEAR], "a": 2}, ((1, BUILT), {"a": 2})),
        ({"a": {**KEEP, "b": LINEAR}}, ((), {"a": ((), {"b": BUILT})})),
        ({"_recursive_": False, "_args_": [LINEAR], "a": LINEAR}, ((LINEAR,), {"a": LINEAR})),
        ({"a": {**KEEP, "_recursive_": False, "b": LINEAR}, "c": LINEAR}, ((), {"a": ((), {"b": LINEAR}), "c": BUILT})),
        ({"_convert_": "all", "a": 1}, ((), {"a": 1})),
    ],
)
def test_instantiate_builds_what_is_in_lists_dicts_and_positional_arguments(node, expected):
    assert instantiate(KEEP | node) == expected


def test_a_partial_node_is_a_call_to_be_made_later_with_what_is_in_it_built():
    call = instantiate(
        {"a": KEEP | {"_partial_": True, "_args_": [LINEAR], "b": LINEAR}, "_target_": f"{__name__}.keep"}
    )
    later = call[1]["a"]
    assert later(2, c=3) == ((BUILT, 2), {"b": BUILT, "c": 3})


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [x], lambda x: {"deep": [x]}, lambda x: KEEP | {"_args_": [x]}]
)
def test_an_error_names_the_class_that_refused_however_deep_it_lies(wrap):
    with pytest.raises(ConfigError, match=r"^taugrad.schedules.Linear: start must be a positive finite number, got 0$"):
        instantiate(KEEP | {"a": wrap(LINEAR | {"start": 0})})


def test_a_node_without_a_target_is_refused():
    with pytest.raises(
        ConfigError, match=r"a _target_ is missing, the import path of what is to be built, in \{'a': 1\}"
    ):
        instantiate({"a": 1})


@dataclass(frozen=True)
class Schema:
    tau: dict[str, Any]
    n: int = 0


def test_a_presets_own_values_are_no_fields_and_others_refer_to_them():
    config = OmegaConf.create(
        {"_own": {"steps": 10}, "_n": "3", "n": "${_n}", "tau": LINEAR | {"steps": "${_own.steps}"}}
    )
    assert read(Schema, config) == Schema(tau=LINEAR, n=3)
    with pytest.raises(ConfigError, match=r"own is not an argument of .*Schema; it takes tau, n"):
        read(Schema, OmegaConf.merge(config, {"own": 1}))


def test_a_presets_own_values_are_refused_under_the_key_that_holds_them():
    config = OmegaConf.create({"_own": {"steps": "many"}, "tau": LINEAR | {"steps": "${_own.steps}"}})
    with pytest.raises(ConfigError, match=r"^_own.steps must be int, got 'many'$"):
        read(Schema, config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"steps": "many"}}, "model.steps must be int, got 'many'"),
        ({"model": {"stepz": 1}}, "model.stepz is not an argument of .*Linear; did you mean model.steps?"),
        ({"model": {"rate": 1}}, r"model.rate is not an argument of .*Linear; did you mean other.rate\?$"),
        ({"model": {"seed": 1}}, r"model.seed is not an argument of .*Linear; did you mean seed\?$"),
        ({"model": {"other_rate": 1}}, r"model.other_rate is not an argument of .*; did you mean other.rate\?$"),
        ({"model": {"model": 1}}, "model.model is not an argument of .*Linear; it takes start, end, steps$"),
        ({"model": {"twice": 1}}, "model.twice is not an argument of .*Linear; it takes start, end, steps$"),
        ({"other": {"n": "x"}}, "other.n must be int, got 'x'"),
    ],
)
def test_an_error_names_the_key_that_a_user_sets_and_not_one_that_refers_to_it(changes, sentence):
    config = OmegaConf.create(
        {
            "task": {"_target_": "taugrad.schedules.Cyclical", "schedule": "${model}", "period": "${length}"},
            "length": "${other.n}",
            "model": LINEAR,
            "other": {"n": 3, "rate": 1.0, "twice": 1},
            "third": {"twice": 2},
            "seed": 0,
        }
    )
    with pytest.raises(ConfigError, match=sentence):
        resolve(OmegaConf.merge(config, changes))


def test_a_constructors_refusal_becomes_a_config_error():
    with pytest.raises(
        ConfigError, match=r"taugrad.schedules.Linear: start must be a positive finite number, got -1.0"
    ):
        instantiate(LINEAR | {"start": -1.0})


def test_an_error_of_our_own_keeps_its_kind():
    with pytest.raises(DataError, match="because"):
        instantiate({"_target_": f"{__name__}.Refuses", "why": "because"})
