"""Records for TensorBoard's HParams tab: the values that were swept or set, the model's choice, and the metrics.

TensorBoard at first shows five hyperparameters: those marked as differing before the others, each kind by name. The
metrics stand to their right, in the order in which they were written. So few are written, and the main ones marked.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import OmegaConf
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as tags

from taugrad.config import in_sweep

Value = bool | int | float | str

_api: Any = api_pb2  # generated code, which a type checker cannot read
_plugin: Any = plugin_data_pb2
_SHOWN = 5  # hyperparameters that TensorBoard shows at first
_TYPES = {"bool_value": "DATA_TYPE_BOOL", "string_value": "DATA_TYPE_STRING", "number_value": "DATA_TYPE_FLOAT64"}
_ALWAYS = ("seed", "estimator", "model")
_NOT_OF_THE_TRAINING = ("hydra", "run_dir", "ckpt_path", "debug", "objective", "direction", "sweep", "logger")


def chosen(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the hyperparameters of a run by their keys, the most important first.

    Swept keys come first, or outside of a sweep the keys set on the command line; then the seed, the estimator and the
    model. The file chosen for a group, or a class, stands by its name. Without Hydra nothing counts as set.

    >>> chosen({"model": {"_target_": "a.B", "size": 3}, "estimator": {"_target_": "c.D"}, "seed": 1, "data": None})
    {'seed': 1, 'estimator': 'D', 'model': 'B'}
    """
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    options = {group.partition("@")[0]: str(option) for group, option in choices.items() if option is not None}
    overrides = _overrides()
    found: dict[str, Value] = {}
    for key in [*(o.key_or_group for o in overrides), *_ALWAYS]:
        for name, value in _values(config, options, key):
            found.setdefault(name, value)
    mixed = {o.key_or_group for o in overrides if len(_kinds(o)) > 1}  # a column of TensorBoard has one type
    return {name: str(value) if name in mixed else value for name, value in found.items()}


def summaries(hyperparameters: Mapping[str, Value], metrics: Sequence[str]) -> list[Any]:
    """Return TensorBoard's three records of a run that has ended; its metrics are scalars with these tags."""
    infos = [
        _api.HParamInfo(name=name, type=_TYPES[_field(value)], differs=i < _SHOWN)
        for i, (name, value) in enumerate(hyperparameters.items())
    ]
    columns = [_api.MetricInfo(name=_api.MetricName(tag=tag)) for tag in metrics]
    start = _plugin.SessionStartInfo()
    for name, value in hyperparameters.items():
        setattr(start.hparams[name], _field(value), value)
    end = _plugin.SessionEndInfo(status=_api.STATUS_SUCCESS)
    return [
        _summary(tags.EXPERIMENT_TAG, experiment=_api.Experiment(hparam_infos=infos, metric_infos=columns)),
        _summary(tags.SESSION_START_INFO_TAG, session_start_info=start),
        _summary(tags.SESSION_END_INFO_TAG, session_end_info=end),
    ]


def _overrides() -> list[Override]:
    """Return the overrides of the command line that concern the training; in a sweep only those that it sweeps."""
    if not HydraConfig.initialized():
        return []
    lines, file = HydraConfig.get().overrides.task, Path(HydraConfig.get().sweep.dir) / "multirun.yaml"
    if of_sweep := in_sweep() and file.is_file():
        lines = OmegaConf.load(file).hydra.overrides.task
    return [
        o
        for o in OverridesParser.create().parse_overrides(list(lines))
        if not o.is_delete()
        and (o.is_sweep_override() or not of_sweep)
        and o.key_or_group.split(".")[0].split("/")[0] not in _NOT_OF_THE_TRAINING
    ]


def _values(config: Mapping[str, Any], options: Mapping[str, str], key: str) -> Iterator[tuple[str, Value]]:
    """Yield the values of a key of the config, or of a group; none where it has been deleted since."""
    parent, _, last = key.rpartition(".")
    if key in options:
        yield key, options[key]
        return
    node: Any = config
    for part in key.split("."):
        node = node.get(part, _values) if isinstance(node, Mapping) else _values  # a value that no config has
        if node is _values:
            return
    if last == "_target_":
        yield parent, str(node).rpartition(".")[2]
    elif isinstance(node, Mapping) and key in _ALWAYS:
        yield key, str(node.get("_target_")).rpartition(".")[2]
    elif isinstance(node, Mapping):
        for child in node:
            if child == "_target_" or not str(child).startswith("_"):
                yield from _values(config, options, f"{key}.{child}")
    else:
        yield key, _plain(node)


def _plain(value: Any) -> Value:
    """Return a value of the config as one of TensorBoard's types; text that reads as a number becomes one.

    >>> [_plain(x) for x in ("1e-3", True, None, [32, 16], "reinmax", float("inf"))]
    [0.001, True, 'null', '[32, 16]', 'reinmax', 'inf']
    """
    if value is None:
        return "null"
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _kinds(override: Override) -> set[str]:
    """Return TensorBoard's types of the values that are swept."""
    if override.value_type not in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP):  # names match a glob
        return set()
    return {_field(_plain(value)) for value in override.sweep_iterator()}


def _field(value: Value) -> str:
    return "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"


def _summary(tag: str, **content: Any) -> Any:
    data = _plugin.HParamsPluginData(version=tags.PLUGIN_DATA_VERSION, **content)
    plugin = {"plugin_name": tags.PLUGIN_NAME, "content": data.SerializeToString()}
    return Summary(value=[{"tag": tag, "metadata": {"plugin_data": plugin}}])
