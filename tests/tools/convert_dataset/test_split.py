"""The split keeps every class's share of boxes, far better than chance does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_plugin.tools.convert_dataset.split import stratified


def random_counts(seed: int, images: int, classes: int) -> np.ndarray:
    """(N, K) boxes: few classes common, many rare; some images full, many with few."""
    rng = np.random.default_rng(seed)
    rate = 3 / np.arange(1, classes + 1) ** 1.3
    return rng.poisson(rate * rng.gamma(0.5, 2, (images, 1)))


@pytest.mark.parametrize(("images", "classes"), [(50, 5), (400, 60)])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_of_all_classes(images: int, classes: int, seed: int) -> None:
    counts = random_counts(seed, images, classes)
    val = stratified(counts, 0.2, seed)
    excess = counts[val].sum(axis=0) - 0.2 * counts.sum(axis=0)
    assert np.abs(excess).max() < 2  # boxes, of any class
    rng = np.random.default_rng(seed)
    random = [counts[rng.permutation(val)].sum(axis=0) for _ in range(20)]
    by_chance = np.abs(np.array(random) - 0.2 * counts.sum(axis=0)).mean()
    assert np.abs(excess).mean() < by_chance / 3


def test_rare_classes_are_trained_on() -> None:
    counts = np.zeros((40, 5), dtype=int)
    counts[:, 0] = 3
    counts[7, 1] = counts[8, 2] = counts[9, 3] = counts[9, 4] = 1
    for seed in range(10):
        val = stratified(counts, 0.2, seed)
        assert val.sum() == 8
        assert not val[[7, 8, 9]].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 6), st.floats(0.01, 0.99), st.integers(0, 99))
def test_number_of_images_is_exact(n: int, classes: int, share: float, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 3, (n, classes))
    val = stratified(counts, share, seed)
    assert val.shape == (n,)
    assert val.sum() == min(max(round(n * share), 1), n - 1)
