"""The commands of `esp-medsam`, one file each; `cli.py` collects them."""
