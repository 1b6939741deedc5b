"""Data sets: the synthetic one of the quick start, a person's own, and checks of both."""

from .images import ReadableDatasetMapper
from .own import check_datasets, register_own_datasets

__all__ = ["ReadableDatasetMapper", "check_datasets", "register_own_datasets"]
