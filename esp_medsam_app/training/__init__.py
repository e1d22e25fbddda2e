"""Training of bundles: views, losses, recipes and the loop. Knows no MONAI Label."""
