"""Weights of other frameworks' RetinaNets under this plugin's names, and back."""
