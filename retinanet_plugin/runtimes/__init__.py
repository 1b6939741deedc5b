"""Exported models behind the interface that detectron2's models have."""
