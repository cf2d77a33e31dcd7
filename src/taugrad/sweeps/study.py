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

NAME = "sweep"  # of the one study in a sweep's study.db


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

    Args:
        directory: of the sweep.
        config: of the sweep; its `objective` and `direction` are a name each, or a list of names.
        fixed: overrides that all jobs share.
        swept: overrides that stand for distributions.
        sampler: from a seed to a sampler of Optuna.
        pruner: one of Optuna.
        seed: of the sampler.

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
            raise ConfigError(
                "sweep=optuna needs something to sweep, such as optimizer.lr=tag(log,interval(1e-4,1e-2))"
            )
        if len(objectives(config)) > 1 and "pruning" in config.callbacks:
            raise ConfigError("pruning needs a single objective: add ~callbacks.pruning, or give one objective")
        self._space = {name_of(o): distribution(o) for o in swept}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=storage(directory),
            study_name=NAME,
            directions=directions(config),
            pruner=pruner,
            load_if_exists=True,
        )
        # A resumed sweep gets another seed, or it would ask for its first points again.
        self.study.sampler = sampler(seed=seed + len(self.study.trials))
        same = sorted(set(fixed) - {"ckpt_path=last"})  # a grid resumes by it, and it changes no trial
        about = {"swept": [str(o.input_line) for o in swept], "fixed": same, "objective": objectives(config)}
        for name, here in about.items():
            there = self.study.user_attrs.get(name, here)
            if [line.lstrip("+") for line in there] != [line.lstrip("+") for line in here]:
                raise ConfigError(f"the study in {directory} is of another sweep: {name} was {there}, got {here}")
            self.study.set_user_attr(name, here)

        self._drop_interrupted()

    def __len__(self) -> int:
        """Number of trials that finished."""
        ended = sum(trial.state.is_finished() for trial in self.study.trials)
        return ended - len(self.study.user_attrs.get("interrupted", []))

    def ask(self, n: int) -> list[Any]:
        """Ask for `n` new trials, numbered one after the other."""
        return [self.study.ask(self._space) for _ in range(n)]

    def tell(self, trials: Sequence[Any], results: Sequence[JobReturn]) -> None:
        """Record the results of trials."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
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

    def _drop_interrupted(self) -> None:
        """Enqueue the points of trials that were running when an earlier sweep was killed; they count once."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.set_user_attr("interrupted", [*self.study.user_attrs.get("interrupted", []), trial.number])
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params)


class Pruning(Callback):
    """Reports each evaluation's objective to the trial of a study, and stops the run when the study's pruner says so.

    Args:
        directory: of the sweep, which holds the study.
        trial: the trial's number.
        monitor: the metric.
        pruner: of the study; its storage does not keep it.

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

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Report the objective; raise Optuna's `TrialPruned` to prune the trial."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        step = pl_module.clock()[0]
        if self.monitor not in trainer.callback_metrics:  # such as the return before the first episode has ended
            return
        self._trial.report(trainer.callback_metrics[self.monitor].item(), step)
        if self._trial.should_prune():
            raise extra("optuna", "optuna").TrialPruned(f"pruned at step {step}")
