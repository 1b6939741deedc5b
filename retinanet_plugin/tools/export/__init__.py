"""Trained models as files that run without this package, and what runs them."""
