import numpy as np
import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from taugrad.commands import compare as curves
from taugrad.commands.compare import compare
from taugrad.errors import ConfigError


def leave_run(directory, overrides, values):
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text("".join(f"- {x}\n" for x in overrides))
    with SummaryWriter(str(directory / "tensorboard")) as writer:
        for step, value in values:
            writer.add_scalar("score", value, step)


def test_runs_that_differ_in_their_seed_are_one_curve(tmp_path):
    for seed in range(3):
        leave_run(tmp_path / "a" / str(seed), ["model=policy", f"seed={seed}"], [(0, 0.0), (50 + seed, 1.0)])
    leave_run(tmp_path / "b", ["model=ppo"], [(0, 1.0), (90, 2.0)])
    leave_run(tmp_path / "c", [], [(0, 1.0), (90, 2.0)])
    counts = compare([tmp_path / "a", tmp_path / "b", tmp_path / "c"], "score", tmp_path / "curves.png")
    assert counts == {"model=policy": 3, "model=ppo": 1, "default": 1}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    leave_run(tmp_path / "a", [], [(0, 1.0)])
    with pytest.raises(ConfigError, match=r"metric must be one of score for .*a, got loss"):
        compare([tmp_path], "loss", tmp_path / "curves.png")


def test_a_directory_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="runs must be directories that hold runs, got "):
        compare([tmp_path], "score", tmp_path / "curves.png")


def run_of(length, level=1.0, first=0):
    steps = np.arange(first, length, 10.0)
    return steps, level * steps


def plotted(groups, tmp_path, shared=""):
    figure = Figure(figsize=(9, 5), layout="constrained")
    curves._plot(figure, groups, "score", shared, tmp_path / "curves.png")
    return figure


def test_settings_in_another_order_or_of_another_seed_are_the_same_and_what_all_share_is_no_label(tmp_path):
    common = ["model=policy", "model.hidden=[64,64]", "+trainer.limit_val_batches=4"]
    leave_run(tmp_path / "0", [*common, "tau.value=1", "tau.value=2", "seed=0"], [(0, 0.0), (9, 1.0)])
    leave_run(tmp_path / "1", ["tau.value=2", *common, "seed=1", "ckpt_path=last"], [(0, 0.0), (9, 1.0)])
    leave_run(tmp_path / "2", [*common, "tau.value=3"], [(0, 0.0), (9, 1.0)])
    assert compare([tmp_path], "score", tmp_path / "curves.png") == {"tau.value=2": 2, "tau.value=3": 1}


def test_fewer_than_five_runs_are_plotted_each_and_more_with_an_interval_and_the_legend_says_how_many(tmp_path):
    groups = {f"{n} seeds": [run_of(100, 1 + i / 10) for i in range(n)] for n in (1, 2, 4, 5, 6)}
    figure = plotted(groups, tmp_path)
    axes, legend = figure.axes[0], figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["1 seeds (a single run)", *(f"{n} seeds (n = {n})" for n in (2, 4, 5, 6))]
    colors = [line.get_color() for line in axes.lines]
    assert [colors.count(f"C{i}") for i in range(5)] == [1, 2 + 1, 4 + 1, 1, 1]
    assert len(axes.collections) == 2  # intervals
    assert "single runs" in plotted({"a": [run_of(50)]}, tmp_path).get_suptitle()


def test_runs_of_different_lengths_are_averaged_to_the_shortest_and_the_legend_says_so(tmp_path):
    groups = {"a": [run_of(100), run_of(50)], "b": [run_of(50), run_of(100, first=60)]}
    figure = plotted(groups, tmp_path)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["a (n = 2 to step 40)", "b (n = 2, no steps in common)"]
    ends = [line.get_xdata()[-1] for line in figure.axes[0].lines]
    assert ends == [90, 40, 40, 40, 90]  # the first curve's runs and mean; the second's runs


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("length", [10, 700])
def test_the_axes_keep_their_size_under_a_legend_of_any_length(n, length, tmp_path):
    groups = {f"{i} " + "model.encoder=[512] " * (length // 20): [run_of(100)] for i in range(n)}
    figure = plotted(groups, tmp_path, shared="tau.value=1 " * (length // 12))
    box = figure.axes[0].get_window_extent()
    width, height = box.width / figure.dpi, box.height / figure.dpi
    assert width > 7
    assert 3 < height < 5
    for artist in (figure.legends[0], figure._suptitle):
        extent = artist.get_window_extent()
        assert figure.bbox.x0 <= extent.x0
        assert extent.x1 <= figure.bbox.x1
        assert not extent.overlaps(box)
