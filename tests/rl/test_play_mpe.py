"""The scripted players of MPE's tasks, against what the environments' rewards say."""

import runpy
from pathlib import Path

import numpy as np

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "play_mpe.py"))
played, spreading = SCRIPT["played"], SCRIPT["spreading"]


def test_distances_and_collisions_of_spreading_are_those_of_the_rewards():
    means = []
    for player in (None, spreading(nearest=True), spreading(nearest=False)):
        returns, distances, collisions = played("simple_spread", player, 10)
        # 25 steps; the distance counts half in each of three rewards, a collision half in two
        np.testing.assert_allclose(returns, -37.5 * distances - collisions)
        means.append(returns.mean())
    assert means == sorted(means)
    assert collisions.any()


def test_a_listener_who_is_told_is_better_than_one_who_stays_in_the_middle():
    players = (None, SCRIPT["centre"], SCRIPT["told"])
    means = [played("simple_speaker_listener", player, 10)[0].mean() for player in players]
    assert means == sorted(means)
