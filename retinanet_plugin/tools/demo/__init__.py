"""A trained model at work on a person's pictures, videos and cameras."""
