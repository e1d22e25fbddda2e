"""One TaskConfig for each family of models."""
