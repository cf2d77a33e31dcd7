"""The examples run, are short, and learn something that they could not without a gradient through the choice."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, steps):
    """The figures that `examples/<name>.py` prints after a short training."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(steps=steps)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) < 80


def test_routing_is_learned_through_the_hard_choice(capsys):
    figures = run("expert_routing", steps=150)
    assert capsys.readouterr().out.startswith("seed 0: routed 0.")
    # A router without gradient leaves each expert a part of the data that has nothing in common.
    assert figures["routed"] > figures["random"] + 0.2
    assert figures["routed"] > figures["one_expert_of_4"] + 0.1
    assert figures["routed_perplexity"] > 7  # of 8


def test_the_place_of_the_glimpse_is_learned_through_the_hard_choice(capsys):
    figures = run("hard_attention", steps=150)
    assert capsys.readouterr().out.startswith("seed 0: hard 0.")
    assert abs(figures["random_located"] - 1 / 9) < 0.015  # 10,000 places at random: 4.8 standard deviations
    assert figures["hard_located"] > 0.5
    assert figures["hard"] > figures["random"] + 0.3


def test_a_table_is_learned_through_hard_samples_of_columns_of_different_sizes():
    figures = run("tabular_gan", steps=250)
    assert figures["hard"] < figures["untrained"] - 0.1


def test_units_are_pruned_by_their_expected_cost_and_the_smaller_network_is_the_same():
    figures = run("pruning_gates", steps=150)
    assert figures["straight_through_units"] < 50
    assert figures["straight_through_free_units"] == 64
    assert figures["straight_through"] > 0.8


def test_pixels_are_selected_without_repetition():
    figures = run("concrete_autoencoder", steps=20)  # enough to run; what it learns takes some hundred steps
    assert figures["without_repetition_pixels"] == figures["random_pixels"] == 10
    assert 0 < figures["selected"] < 0.25


def test_the_tokens_of_a_discrete_vae_are_learned_through_the_hard_choice(capsys):
    figures = run("dvae", steps=50)
    assert capsys.readouterr().out.startswith("seed 0: hard ")
    assert figures["hard"] < 0.7 * figures["fixed"]
    assert figures["hard_share"] > 0.4
