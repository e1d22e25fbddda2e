"""A training on a GPU machine that one borrows for one command: pack here, run there, unpack here.

Such a machine has torch and no network. It gets a copy of the working tree and one folder beside
it; `scripts/train_on_gpu.sh` says how. What runs there imports neither what reads images and
volumes nor a server.
"""
