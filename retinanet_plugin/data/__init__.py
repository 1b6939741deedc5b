"""Datasets: the synthetic one of the quick start, the user's own, and the rules for both."""

from .mapper import ReadableDatasetMapper
from .own_datasets import check_registered_datasets, register_own_datasets

__all__ = ["ReadableDatasetMapper", "check_registered_datasets", "register_own_datasets"]
