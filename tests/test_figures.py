import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
PAGES = ("course.md", "results.md", "circuits.md", "agents.md")
COURSE, RESULTS, CIRCUITS, AGENTS = ((ROOT / "docs" / name).read_text() for name in PAGES)
NAMES = sorted(path.stem for path in FIGURES.glob("*.png"))


def test_the_figures_are_plotted_again_with_the_same_numbers_and_by_the_same_matplotlib_byte_for_byte(tmp_path):
    # A process of its own: the script decides for torch's noise, and this one may have taken the kernels' already.
    command = [sys.executable, str(ROOT / "scripts" / "figures.py"), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    ours, kept = (json.loads((directory / "numbers.json").read_text()) for directory in (tmp_path, FIGURES))
    assert set(kept) == {"drawn_by", *NAMES}
    for name in NAMES:
        assert sorted(ours[name]) == sorted(kept[name])
        for key, values in kept[name].items():
            assert ours[name][key] == pytest.approx(values, rel=1e-6, abs=1e-9), (name, key)
        if ours["drawn_by"] == kept["drawn_by"]:
            for file in (f"{name}.png", f"{name}.svg"):
                assert (tmp_path / file).read_bytes() == (FIGURES / file).read_bytes(), file


def test_every_figure_is_on_a_page_and_every_one_on_a_page_exists():
    assert sorted(re.findall(r"\]\(figures/(\w+)\.png\)", COURSE + RESULTS + CIRCUITS + AGENTS)) == NAMES
    assert sorted(path.stem for path in FIGURES.glob("*.svg")) == NAMES


def test_the_tables_of_the_course_are_those_of_the_measurements():
    runs = json.loads((FIGURES / "noise.json").read_text())["mean"]
    for arm, mean in runs.items():
        (row,) = re.findall(rf"^\| {arm}[^|]*\|(.*)\|$", COURSE, re.MULTILINE)
        shown = [float(cell) for cell in row.split("|")]
        keys = ("train_loss", "test_loss", "kl", "distortion_sample", "distortion_argmax", "nll_100")
        assert shown == [round(mean[key], 1) for key in keys]
    bias = {(r["estimator"], r["tau"]): r for r in json.loads((FIGURES / "bias.json").read_text())["results"]}
    for label, name in [
        ("soft Gumbel-Softmax", "Gumbel-Softmax, soft"),
        ("straight-through Gumbel-Softmax", "ST Gumbel-Softmax"),
        ("Gumbel-Rao, 10 draws", "Gumbel-Rao, 10 draws"),
        ("straight-through", "straight-through"),
        ("ReinMax", "ReinMax"),
    ]:
        (row,) = re.findall(rf"^\| {label} \| (\d\.\d\d .*)\|$", COURSE, re.MULTILINE)
        shown = [float(cell.split()[0]) for cell in row.split("|")]
        cells = [bias[name, tau] for tau in (0.1, 0.5, 1.0)]
        assert shown == pytest.approx([c["bias"] for c in cells] + [c["variance"] for c in cells], abs=0.005, rel=0.03)
