"""The command `taugrad evaluate`: test metrics, pictures and film of a run, from its checkpoint alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lightning import LightningDataModule, seed_everything
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from taugrad.config import Config, read
from taugrad.data.batches import images_to_show
from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.files import require_file, require_folder, user_path, writing
from taugrad.models.pictures import save
from taugrad.training import ownership
from taugrad.training.images import ImageTask
from taugrad.training.policies import PolicyTask
from taugrad.training.progress import Progress
from taugrad.training.runs import load_run
from taugrad.training.task import Task
from taugrad.training.trainer import build_trainer, check_limits, print_metrics, write_json

_PICTURED = 1000  # test images that the pictures are made from


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of conf/evaluate.yaml and their types."""

    run: str
    trainer: Config
    checkpoint: str | None = None
    trust: list[str] = field(default_factory=list)
    num_samples: int | None = None
    episodes: int | None = None
    video: str | None = None
    images: bool = False
    debug: bool = False


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluate a run on its test split from its checkpoint alone; print the metrics and write `evaluation.json`."""
    arguments = read(EvaluateConfig, config)
    run = user_path(arguments.run)
    changes = {"model.nll_samples": arguments.num_samples, "evaluation.test_episodes": arguments.episodes}
    changes = {key: value for key, value in changes.items() if value is not None}
    if ownership.is_training(run):
        Console().print(f"{run} is still training: this evaluates its checkpoint as it is now", soft_wrap=True)
    task, data, saved = load_run(run, arguments.checkpoint, arguments.trust, changes)
    check_limits(arguments.trainer)
    seed_everything(saved["seed"], workers=True, verbose=False)
    video = None if arguments.video is None else user_path(arguments.video)
    film = None if video is None else _film(task, video)
    directory = run / "pictures"
    pictures = _pictures(task, data, directory) if arguments.images else {}
    progress = [Progress()] if arguments.trainer.get("enable_progress_bar", True) else []
    trainer = build_trainer(arguments.trainer, str(run), [*progress], [])
    metrics = dict(trainer.test(task, data, verbose=False)[0])
    print_metrics(Console(), metrics)  # first, because writing may fail
    if video is not None and film is not None:
        with writing(video):
            film()
    for name, picture in pictures.items():
        with writing(directory / f"{name}.png"):
            save(picture, directory / f"{name}.png")
    write_json(run / "evaluation.json", metrics)
    return metrics


def _film(task: Task, path: Path) -> Callable[[], None]:
    """Play the policy's first episode; return a function that writes its film."""
    if not isinstance(task, PolicyTask):
        raise ConfigError(f"video is for policies, got a run of {type(task).__name__}")
    if path.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"video must end in .gif or .mp4, got {path}")
    imageio = extra("imageio.v3", "video")
    require_file("video", path)
    frames, fps = task.film()
    options = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps}
    return lambda: imageio.imwrite(path, frames, **options)


def _pictures(task: Task, data: LightningDataModule | None, directory: Path) -> dict[str, Tensor]:
    """The model's pictures of test images, by name; `directory` is checked to be writable."""
    if not isinstance(task, ImageTask) or data is None:
        raise ConfigError(f"images is for models of images, got a run of {type(task).__name__}")
    require_folder("run", directory)
    data.setup("test")
    return task.pictures(*images_to_show(data.test_dataloader(), _PICTURED))
