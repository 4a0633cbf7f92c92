"""Directions of perturbations."""

import numpy as np
import pytest
import torch

from dfx.blackbox.perturbation import Perturbation, hadamard, rademacher


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [rademacher, hadamard])
@pytest.mark.parametrize("batch, draws, parameters", [(1, 1, 1), (16, 1, 12), (5, 3, 50), (100, 1, 7), (3, 4, 16)])
def test_directions_are_signs_of_the_right_shape(draw, batch, draws, parameters):
    directions = draw(batch, draws, parameters, generator())
    assert directions.shape == (batch, draws, parameters)
    assert set(directions.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("draw", [rademacher, hadamard])
def test_every_sign_is_as_likely_as_the_other_and_independent_of_its_neighbours(draw):
    source = generator()
    one_example = torch.stack([draw(16, 1, 5, source)[3, 0] for _ in range(4000)])
    assert one_example.mean(dim=0).abs().max() < 0.06
    products = one_example.T @ one_example / 4000 - torch.eye(5)
    assert products.abs().max() < 0.06


def test_examples_of_a_batch_have_directions_of_their_own():
    directions = rademacher(100, 1, 20, generator())[:, 0]
    agreement = (directions @ directions.T / 20 - torch.eye(100)).abs()
    assert agreement.mean() < 0.3
    assert len(directions.unique(dim=0)) == 100


@pytest.mark.parametrize("batch, draws, parameters", [(16, 1, 12), (8, 4, 17), (64, 1, 50)])
def test_hadamard_directions_of_two_parameters_are_orthogonal_over_a_full_batch(batch, draws, parameters):
    directions = hadamard(batch, draws, parameters, generator()).reshape(-1, parameters)
    products = directions.T @ directions
    torch.testing.assert_close(products, batch * draws * torch.eye(parameters, dtype=torch.float64))


def test_hadamard_directions_of_a_part_batch_agree_less_than_random_ones():
    def agreement(draw) -> float:
        directions = draw(100, 1, 50, generator()).reshape(-1, 50)
        return float(((directions.T @ directions / 100 - torch.eye(50)) ** 2).mean())

    assert agreement(hadamard) < 0.5 * agreement(rademacher)


def test_an_excerpt_keeps_its_direction_until_its_lane_restarts():
    perturbation = Perturbation("rademacher", "excerpt", 2, seed=0)
    first = perturbation.next(np.ones(3, dtype=bool), 1, 40)
    second = perturbation.next(np.array([False, True, False]), 1, 40)
    assert np.array_equal(first[[0, 2]], second[[0, 2]])
    assert not np.array_equal(first[1], second[1])
    with pytest.raises(ValueError, match="2 lanes follow 3"):
        perturbation.next(np.ones(2, dtype=bool), 1, 40)


def test_a_frame_gets_new_directions_where_they_are_redrawn_by_frame():
    perturbation = Perturbation("rademacher", "frame", 1, seed=0)
    going_on = np.zeros(3, dtype=bool)
    assert not np.array_equal(perturbation.next(going_on, 1, 40), perturbation.next(going_on, 1, 40))


@pytest.mark.parametrize("redraw", ["frame", "excerpt"])
def test_directions_are_reproducible_from_the_seed_and_from_a_saved_state(redraw):
    restart = np.array([True, False, True])
    one, two = (Perturbation("hadamard", redraw, 1, seed=5) for _ in range(2))
    for _ in range(3):
        assert np.array_equal(one.next(restart, 1, 9), two.next(restart, 1, 9))
    resumed = Perturbation("hadamard", redraw, 1, seed=0)
    resumed.load_state_dict(one.state_dict())
    for _ in range(3):
        assert np.array_equal(one.next(restart, 1, 9), resumed.next(restart, 1, 9))
