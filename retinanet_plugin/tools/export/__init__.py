"""``retinanet export``: trained models as files that run without this package."""
