"""All that is wrong with data sets, listed, shown and mended: ``tools.check_dataset``."""
