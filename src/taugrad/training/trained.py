"""Models of finished runs, as parts of new ones."""

from taugrad.errors import ConfigError
from taugrad.files import user_path
from taugrad.models.tokenizer import Tokenizer
from taugrad.training.images import ImageTask
from taugrad.training.runs import load_run


def tokenizer(run: str, checkpoint: str | None = None) -> Tokenizer:
    """Load the tokenizer of a run of model=tokenizer, by the checkpoint that the run reports.

    Args:
        run: the run's directory.
        checkpoint: `best` or `last`, to take another one.

    Raises:
        ConfigError: the directory holds no checkpoint, or one of another model.
        CheckpointError: the checkpoint is damaged, or does not fit this version.
    """
    task = load_run(user_path(run), checkpoint, key="tokenizer.run")[0]
    model = task.model if isinstance(task, ImageTask) else task
    if not isinstance(model, Tokenizer):
        raise ConfigError(f"tokenizer.run must be a run of model=tokenizer, got one of {type(model).__name__}: {run}")
    return model
