"""Checkpoint files: whole or absent, refused when damaged, and safe when they come from a stranger."""

import errno
import hashlib
import os
import re
import resource
import signal
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from taugrad.errors import CheckpointError
from taugrad.training import checkpoints
from taugrad.training.runs import TRUSTED, load_run, require_trusted


def content(step=3):
    return {"global_step": step, "state_dict": {"w": torch.arange(1000.0)}, "config": {"task": {"a": [1, "b", None]}}}


def test_what_is_saved_is_loaded_and_any_other_reader_opens_it(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoints.save(content(), path)
    for loaded in (checkpoints.load(path), torch.load(path, weights_only=True)):
        assert torch.equal(loaded["state_dict"]["w"], torch.arange(1000.0))
        assert loaded["config"] == {"task": {"a": [1, "b", None]}}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.decode() == hashlib.sha256(path.read_bytes()[:-66]).hexdigest()
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_every_flipped_bit_and_every_truncation_is_refused(at, tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(content(), path)
    whole = path.read_bytes()
    place = int(at * len(whole))
    flipped = bytearray(whole)
    flipped[place] ^= 16
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match=r"last.ckpt is damaged|last.ckpt is truncated"):
        checkpoints.load(path)
    path.write_bytes(whole[:place])
    with pytest.raises(CheckpointError, match=r"last.ckpt is truncated or no checkpoint of taugrad"):
        checkpoints.load(path)


def test_a_damaged_checkpoint_names_the_newest_whole_one_next_to_it(tmp_path):
    for i, name in enumerate(["oldest", "older", "last"]):
        checkpoints.save(content(step=i), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (i, i))
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"last.ckpt is truncated .*; .*/older.ckpt is whole, of step 1$"):
        checkpoints.load(tmp_path / "last.ckpt")
    path, damaged = checkpoints.newest(tmp_path)
    assert path == tmp_path / "older.ckpt"
    assert len(damaged) == 1
    assert checkpoints.newest(tmp_path / "nothing") == (None, [])
    checkpoints.save(content(step=0), tmp_path / "best.ckpt")  # the newest file, as of a copied run it may be
    assert checkpoints.newest(tmp_path)[0] == tmp_path / "older.ckpt"


def test_a_full_disk_leaves_the_checkpoint_before_whole_and_names_the_path(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(content(step=1), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the system refuses what goes beyond
    try:
        with pytest.raises(CheckpointError, match=r"last.ckpt cannot be written: File too large; what was there is"):
            checkpoints.save(content(step=2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoints.load(path)["global_step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_last_sync_counts_too(code, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoints.save(content(step=1), path)

    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        checkpoints.save(content(step=2), path)
    monkeypatch.undo()
    assert checkpoints.load(path)["global_step"] == 1


def test_a_read_only_directory_gets_a_sentence_and_nothing_is_lost():
    with tempfile.TemporaryDirectory() as name:  # which others may enter, unlike pytest's own
        directory, user = Path(name), os.geteuid()
        checkpoints.save(content(step=1), directory / "last.ckpt")
        directory.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # permissions do not bind root
        try:
            with pytest.raises(
                CheckpointError, match=r"last.ckpt cannot be written: Permission denied; what was there"
            ):
                checkpoints.save(content(step=2), directory / "last.ckpt")
        finally:
            os.seteuid(user)
            directory.chmod(0o755)
        assert checkpoints.load(directory / "last.ckpt")["global_step"] == 1


class Payload:
    """Unpickled by a loader that trusts, it makes a file."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_in_a_checkpoint_is_refused_and_runs_nothing(tmp_path):
    mark = tmp_path / "it_ran"
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoints.save(content() | {"callbacks": Payload(f"touch {mark}")}, path)  # its checksum is right
    with pytest.raises(
        CheckpointError, match=r"best.ckpt holds more than plain values and tensors, and was not loaded"
    ):
        checkpoints.load(path)
    with pytest.raises(CheckpointError, match="holds more than plain values"):
        load_run(tmp_path / "run")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the payload is a live one


DANGEROUS = [
    "os.system",
    "os._exit",
    "builtins.eval",
    "subprocess.Popen",
    "hydra.utils.call",
    "hydra.utils.instantiate",
    "torch.hub.load",
    "torch.load",
    "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    "torch.nn.modules.utils.collections.abc.Sequence",
    "taugrad.commands.train.train",
    "taugrad.compiler.run_compiler",
    "taugrad.ops.native.build.run_compiler",
    "taugrad.data.mnist._download",
    "taugrad.data.mnist.pooch.retrieve",
    "taugrad.training.runs.instantiate",
    "taugrad.training.images.torch.hub.load",
    "posix.system",
]


@pytest.mark.parametrize("target", DANGEROUS)
@pytest.mark.parametrize("place", [lambda t: t, lambda t: {"model": {"tau": t}}, lambda t: {"a": [1, [t]]}])
def test_a_config_may_call_only_what_is_trusted(target, place):
    with pytest.raises(CheckpointError, match=r"is not trusted: trust=\[|is not there in this version"):
        require_trusted(place({"_target_": target}))


@pytest.mark.parametrize("target", ["os.system", "os._exit"])
def test_a_stranger_s_run_is_refused_before_anything_is_called(target, tmp_path):
    mark = tmp_path / "it_ran"
    evil = {"_target_": target, "command": f"touch {mark}"}
    task = {"_target_": "taugrad.training.images.ImageTask", "estimator": evil}
    config = {"task": task, "data": None, "seed": 0}
    checkpoints.save(content() | {"config": config}, tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=f"{target} is not trusted"):
        load_run(tmp_path)
    assert not mark.exists()


def test_what_is_trusted_by_name_may_be_called_and_an_environment_s_module_too():
    require_trusted({"_target_": "fractions.Fraction"}, trust=["fractions"])
    with pytest.raises(CheckpointError, match=r"trust=\[fractions\]"):
        require_trusted({"_target_": "fractions.Fraction"}, trust=["fraction"])
    environment = {"_target_": "taugrad.rl.environments.make", "id": "antigravity:Env-v0"}
    with pytest.raises(CheckpointError, match=r"environment antigravity:Env-v0 is not trusted: trust=\[antigravity\]"):
        require_trusted(environment)
    require_trusted(environment, trust=["antigravity"])
    require_trusted(environment | {"id": "CartPole-v1"})
    parallel = {"_target_": "taugrad.rl.envs.agents.make_parallel", "id": "antigravity.env"}
    with pytest.raises(CheckpointError, match=r"environment antigravity.env is not trusted: trust=\[antigravity\]"):
        require_trusted(parallel)
    require_trusted(parallel | {"id": "mpe2.simple_spread_v3"})
    turns = {"_target_": "taugrad.rl.envs.turns.make", "id": "antigravity"}
    with pytest.raises(CheckpointError, match=r"environment antigravity is not trusted: trust=\[antigravity\]"):
        require_trusted(turns)
    with pytest.raises(CheckpointError, match="is not trusted"):  # positional arguments name it as well
        require_trusted({"_target_": turns["_target_"], "_args_": ["antigravity"]})
    require_trusted(turns | {"id": "pettingzoo.classic.connect_four.connect_four"})


def test_all_that_our_configs_put_into_a_checkpoint_is_trusted():
    conf = Path(__file__).parents[2] / "conf"
    groups = ("model", "task", "data", "estimator", "tau", "lr_factor", "optimizer", "env")
    files = [file for group in groups for file in (conf / group).glob("*.yaml")]
    targets = {t for file in files for t in re.findall(r"_target_: ([\w.]+)", file.read_text())}
    assert len(targets) > 20
    by_id = {f"taugrad.rl.envs.{n}" for n in ("minatar.make", "agents.make", "agents.make_parallel", "turns.make")}
    for target in targets - by_id:
        require_trusted({"_target_": target})
    assert all(any(target.startswith(f"{package}.") for package in TRUSTED) for target in targets)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"_target_": "taugrad.nets.gone"}, "taugrad.nets.gone is not there in this version"),
        (
            {"_target_": "taugrad.models.cat_vae.CatVAE", "novel": 1},
            r"written by taugrad 9.9, does not load: taugrad.models.cat_vae.CatVAE: .*novel",
        ),
    ],
)
def test_a_run_of_another_version_gets_a_sentence(model, sentence, tmp_path):
    task = {"_target_": "taugrad.training.images.ImageTask", "model": model}
    config = {"task": task, "data": None, "seed": 0}
    checkpoints.save(content() | {"config": config, "versions": {"taugrad": "9.9"}}, tmp_path / "checkpoints/best.ckpt")
    with pytest.raises(CheckpointError, match=sentence):
        load_run(tmp_path)
