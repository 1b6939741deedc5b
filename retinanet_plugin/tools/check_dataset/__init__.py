"""``retinanet check-dataset``: lists, draws and fixes everything that is wrong with a dataset."""
