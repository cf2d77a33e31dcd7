"""The package as a wheel, away from the checkout, with a user's own package next to it."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import commands

import taugrad
from taugrad import cli

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_estimator"
SHORT = ["trainer.max_steps=40", "trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=2"]
# For those who change the repository, or check a table against another library.
MADE = ("figures", "pack_binarized_mnist", "same_run", "compare_maskable", "sb3_minatar", "step_agents", "play_mpe")
SHORT += ["+trainer.limit_val_batches=3", "+trainer.limit_test_batches=3"]


EACH = """
import json, sys
import taugrad.cli
from hydra.core.hydra_config import HydraConfig

print(taugrad.__file__)  # that it is the installed one
for line in json.loads(sys.argv[1]):
    sys.argv = ["taugrad", *line]
    taugrad.cli.main()
    HydraConfig.instance().cfg = None
"""


def run(command, cwd, *, path=""):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with what the wheel installs, and nothing of the checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    built = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)], ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(directory / "site")
    return directory / "site"


def test_the_wheel_carries_every_config(installed):
    configs = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(installed / "taugrad") for path in installed.rglob("*.yaml")} == configs
    assert (installed / "hydra_plugins" / "taugrad_sweepers.py").is_file()


def test_the_wheel_is_typed_and_says_its_version_licence_and_addresses(installed):
    assert (installed / "taugrad" / "py.typed").is_file()
    (metadata,) = installed.glob("taugrad-*.dist-info/METADATA")
    said = metadata.read_text(encoding="utf-8").splitlines()
    assert f"Version: {taugrad.__version__}" in said
    assert "License-Expression: MIT" in said
    assert any(line.startswith("Project-URL: Homepage, ") for line in said)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == taugrad.__version__
    assert f"Project-URL: Homepage, {cited['repository-code']}" in said
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"\nsite_name: {cited['title']}\nsite_description: {cited['abstract']}\n" in site
    assert any(line.startswith(f"Summary: {cited['abstract'][:-1]}") for line in said)


@pytest.mark.system
def test_an_installed_package_trains_evaluates_and_exports_from_any_folder(installed, tmp_path):
    directory = tmp_path / "run"
    probe = [f"run={directory}", "estimators=[reinmax]", "taus=[1]", "draws=20", "reference_samples=100", "images=2"]
    lines = [
        ["train", "model=cat_vae", "model.nll_samples=2", *SHORT, f"hydra.run.dir={directory}"],
        ["evaluate", f"run={directory}", "+trainer.limit_test_batches=3"],
        ["export", f"run={directory}", "out=a.onnx", f"hydra.run.dir={tmp_path}"],
        ["probe", *probe, f"hydra.run.dir={tmp_path}"],
    ]
    result = run([sys.executable, "-c", EACH, json.dumps(lines)], tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{installed}{os.sep}")
    metrics = json.loads((directory / "metrics.json").read_text())
    evaluation = json.loads((directory / "evaluation.json").read_text())
    assert evaluation["test/nll"] == pytest.approx(metrics["test/nll"], rel=1e-6)
    assert "the same as the model on 100 inputs" in result.stdout
    assert (tmp_path / "probe.png").is_file()


def test_the_commands_are_listed_and_an_unknown_one_gets_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["taugrad"])
    cli.main()
    shown = capsys.readouterr().out
    assert re.findall(r"^  taugrad (\w+)", shown, re.MULTILINE) == [
        "train",
        "evaluate",
        "probe",
        "export",
        "bench",
        "compare",
    ]
    monkeypatch.setattr(sys, "argv", ["taugrad", "trian"])
    with pytest.raises(SystemExit, match="error: the command must be one of train, evaluate, probe, export, bench"):
        cli.main()


@pytest.mark.system
def test_help_and_completion_answer_without_torch_and_lightning(tmp_path):
    code = """
import os, sys
from taugrad import cli
os.environ["COMP_LINE"] = "taugrad train estimator=rein"
lines = "--help", "train --help", "evaluate --help", "train --cfg job", "bench --help", "compare --help"
for line in (*lines, "-sc query=bash"):
    sys.argv = ["taugrad", *line.split()]
    try:
        cli.main()
    except SystemExit as stopped:
        assert not stopped.code, line
print(sorted({"torch", "lightning", "matplotlib", "gymnasium", "scipy", "optuna"} & sys.modules.keys()))
"""
    result = run([sys.executable, "-c", code], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("estimator=reinmax estimator=reinmax_cv estimator=reinmax_rao\n[]\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("taugrad ", "train evaluate probe export bench compare"),
        ("taugrad tra", "train evaluate probe export bench compare"),  # the shell takes those that fit
        ("taugrad train env=cart", "env=cartpole"),
        ("taugrad  evaluate num_sam", "num_samples="),
        ("taugrad bench ", ""),  # a shell's own: files
        ("taugrad trian ", ""),
    ],
)
def test_a_shell_completes_commands_and_what_they_take(line, offered, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["taugrad", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", line)
    cli.main()
    assert capsys.readouterr().out.split() == offered.split()


@pytest.mark.parametrize("given", ["~/runs", "'~/runs'", "$HOME/runs"])
def test_the_users_home_is_expanded_before_hydra_makes_a_directory(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "of (mé)"))
    keys = [f"hydra.run.dir={given}", f"hydra.sweep.dir={given}", "hydra.searchpath=[file://~/conf]"]
    monkeypatch.setattr(sys, "argv", ["taugrad", "train", *keys, "--cfg", "hydra"])
    (tmp_path / "of (mé)" / "conf").mkdir(parents=True)
    cli.main()
    shown = yaml.safe_load(capsys.readouterr().out)["hydra"]
    assert (shown["run"]["dir"], shown["sweep"]["dir"]) == (f"{tmp_path}/of (mé)/runs",) * 2
    assert shown["searchpath"] == [f"file://{tmp_path}/of (mé)/conf"]
    monkeypatch.setattr(sys, "argv", ["compare", given.strip("'")])
    with pytest.raises(SystemExit, match=r"runs must be directories that hold runs, got .*/of \(mé\)/runs"):
        cli.compare()


def test_output_in_an_encoding_that_lacks_a_character_goes_on_with_an_escape(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["taugrad", "train", "hydra.run.dir='m\u00e9'", "--cfg", "hydra"])
    cli.main()
    sys.stdout.flush()
    assert b"dir: m\\xe9\n" in written.getvalue()


def test_every_folder_of_modules_is_a_package():
    # pytest would put another folder on the path, where a module of ours hides an installed one of its name.
    folders = {file.parent for file in Path(taugrad.__file__).parent.rglob("*.py")}
    folders -= {folder for folder in folders if "conf" in folder.relative_to(Path(taugrad.__file__).parent).parts}
    assert len(folders) > 10
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_command_has_its_script():
    scripts = {f.stem: f.read_text() for f in (ROOT / "scripts").glob("*.py") if f.stem not in MADE}
    assert set(scripts) == set(cli._COMMANDS)
    for name, text in scripts.items():
        assert f"from taugrad.cli import {name}\n" in text
        assert f"\n    {name}()\n" in text


@pytest.mark.parametrize("name", ["train", "bench"])
def test_a_script_is_the_command_of_its_name(name, tmp_path):
    script = commands.run(f"{name}.py", "--help", cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    if name == "bench":  # once as a user does; every other command is started elsewhere
        command = run([str(Path(sys.executable).with_name("taugrad")), name, "--help"], tmp_path)
    else:
        command = commands.taugrad(name, "--help", cwd=tmp_path)
    assert command.returncode == 0, command.stderr
    names = {"taugrad", name, f"{name}.py"}
    assert set(command.stdout.split()) - names == set(script.stdout.split()) - names


@pytest.mark.system
def test_a_users_own_package_plugs_in_without_touching_ours(tmp_path, monkeypatch):
    own = (EXAMPLE / "own" / "__init__.py").read_text()
    assert len(own.splitlines()) < 60
    (printed,) = re.findall(
        r"^    PYTHONPATH=\. taugrad train (.*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE
    )
    keys = [key.strip('"') for key in printed.split(" ")]
    train = [str(Path(sys.executable).with_name("taugrad")), "train", *keys, *SHORT]
    result = run([*train, f"hydra.run.dir={tmp_path}"], tmp_path, path=EXAMPLE)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 40
    monkeypatch.syspath_prepend(EXAMPLE)
    evaluate = ["evaluate", f"run={tmp_path}", "images=true", "trust=[own]", "+trainer.limit_test_batches=3"]
    result = commands.taugrad(*evaluate, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "pictures" / "means.png").is_file()
    result = commands.taugrad(*train[1:], "model.components=many", cwd=tmp_path)
    assert "error: model.components must be int, got 'many'" in result.stderr
