"""Study of Optuna: distributions, trials, and the pruning of those without hope."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig

from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.sweeps.jobs import Job, directions, job, name_of, objectives, values
from taugrad.training.task import task_of

NAME = "sweep"  # name of the one study in a sweep's study.db


def storage(directory: str | Path) -> str:
    """Address of the study in a sweep's directory."""
    return f"sqlite:///{Path(directory) / 'study.db'}"


def distribution(override: Override) -> Any:
    """Return the distribution of Optuna that a swept override stands for.

    Choices are categorical; `range(a, b, step)` is a whole or fractional number; `interval(a, b)` any number between,
    `int(interval(a, b))` a whole one; `tag(log, interval(a, b))` is uniform in its logarithm.
    """
    kinds = extra("optuna", "optuna").distributions

    def between(low: Any, high: Any, **how: Any) -> Any:
        whole = isinstance(low, int) and isinstance(high, int)
        return (kinds.IntDistribution if whole else kinds.FloatDistribution)(low, high, **how)

    swept = override.value()
    if isinstance(swept, IntervalSweep):
        return between(swept.start, swept.end, log="log" in swept.tags)
    if isinstance(swept, RangeSweep):
        found = list(swept.range())
        return between(found[0], found[-1], step=swept.step)
    return kinds.CategoricalDistribution(values(override))


class Trials:
    """Trials of a study in `study.db`, by Optuna's ask and tell; the number of a trial is the folder of its job.

    A sweep's `config` names its `objective` and `direction`, one or a list; all jobs share the overrides `fixed`, those
    `swept` stand for distributions; `sampler` makes a sampler of Optuna from a seed.

    Raises:
        ConfigError: there is nothing to sweep, or the study is one of another sweep.
    """

    def __init__(
        self,
        directory: Path,
        config: DictConfig,
        fixed: Sequence[str],
        swept: Sequence[Override],
        sampler: Callable[..., Any],
        pruner: Any,
        seed: int,
    ) -> None:
        optuna = extra("optuna", "optuna")
        if not swept:
            example = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
            raise ConfigError(f"sweep=optuna needs something to sweep, such as {example}")
        if len(objectives(config)) > 1 and "pruning" in config.callbacks:
            raise ConfigError("pruning needs a single objective: add ~callbacks.pruning, or give one objective")
        self._space = {name_of(o): distribution(o) for o in swept}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        where = {"storage": storage(directory), "study_name": NAME, "load_if_exists": True}
        self.study = optuna.create_study(**where, directions=directions(config), pruner=pruner)
        # A resumed sweep gets another seed, or it would ask for its first points again.
        self.study.sampler = sampler(seed=seed + len(self.study.trials))
        same = sorted(set(fixed) - {"ckpt_path=last"})  # a grid resumes by it, and it changes no trial
        about = {"swept": [str(o.input_line) for o in swept], "fixed": same, "objective": objectives(config)}
        for name, here in about.items():
            there = self.study.user_attrs.get(name, here)
            if [line.lstrip("+") for line in there] != [line.lstrip("+") for line in here]:
                raise ConfigError(f"the study in {directory} is of another sweep: {name} was {there}, got {here}")
            self.study.set_user_attr(name, here)
        # The points of trials that were running when an earlier sweep was killed are enqueued; they count once.
        for trial in self.study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            self.study.set_user_attr("interrupted", [*self.study.user_attrs.get("interrupted", []), trial.number])
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            self.study.enqueue_trial(trial.params)

    def __len__(self) -> int:
        """Number of trials that finished."""
        ended = sum(trial.state.is_finished() for trial in self.study.trials)
        return ended - len(self.study.user_attrs.get("interrupted", []))

    def ask(self, n: int) -> list[Any]:
        """Ask for `n` new trials, numbered one after the other."""
        return [self.study.ask(self._space) for _ in range(n)]

    def tell(self, trials: Sequence[Any], results: Sequence[JobReturn]) -> None:
        """Record the results of trials."""
        kinds = extra("optuna", "optuna").trial.TrialState
        states = {"complete": kinds.COMPLETE, "pruned": kinds.PRUNED, "failed": kinds.FAIL}
        for trial, result in zip(trials, results, strict=True):
            ended = job(trial.number, trial.params, result)
            trial.set_user_attr("job", {"seconds": ended.seconds, "error": ended.error})
            self.study.tell(trial, ended.values, states[ended.state])

    def jobs(self) -> list[Job]:
        """List every trial that has ended, as a job."""
        states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Job(t.number, t.params, t.values, states[t.state.name], **t.user_attrs.get("job", {"error": "interrupted"}))
            for t in self.study.trials
            if t.state.is_finished()
        ]


class Pruning(Callback):
    """Reports each evaluation's objective, `monitor`, to a trial, and stops the run when the study's pruner says so.

    The study is in the sweep's `directory`; its storage does not keep the pruner.

    Raises:
        ConfigError: the run is no job of a sweep, or no evaluation gives the metric.
    """

    def __init__(self, directory: str, trial: int | None, monitor: str, pruner: Any) -> None:
        if trial is None:
            raise ConfigError("callbacks.pruning is for the jobs of a sweep: add -m, or ~callbacks.pruning")
        if monitor.startswith("test/"):
            raise ConfigError(f"callbacks.pruning: {monitor} is known after the training only: add ~callbacks.pruning")
        optuna = extra("optuna", "optuna")
        study = optuna.load_study(study_name=NAME, storage=storage(directory), pruner=pruner)
        self._trial, self.monitor = optuna.Trial(study, study.trials[trial]._trial_id), monitor

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Report the objective; raise Optuna's `TrialPruned` to prune the trial."""
        reported = self.monitor in trainer.callback_metrics  # unlike the return before the first episode has ended
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not reported:
            return
        step = task_of(trainer).clock()[0]
        self._trial.report(trainer.callback_metrics[self.monitor].item(), step)
        if self._trial.should_prune():
            raise extra("optuna", "optuna").TrialPruned(f"pruned at step {step}")
