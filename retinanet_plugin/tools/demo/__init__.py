"""``retinanet demo``: detect objects in images, videos and camera streams."""
