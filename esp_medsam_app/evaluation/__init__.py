"""How good a segmentation is: overlap and distance against reference label maps."""
