"""`python -m esp_medsam_app.gpu_machine`: what scripts/train_on_gpu.sh calls.

What runs on the borrowed machine is imported for its own command alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from filelock import FileLock

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.gpu_machine.places import FOLDER, LARGEST_LOAD, MIB, Places
from esp_medsam_app.training.cycles import ORDER, SIZES
from esp_medsam_app.training.passes import SPEEDS

RECIPE = "gpu_minutes"


def main(arguments: list[str] | None = None) -> int:
    """Read the command and do it; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except EspMedSamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_on_gpu.sh", description=__doc__)
    commands = parser.add_subparsers(required=True)

    pack = commands.add_parser("pack", help="here: fill the folder that travels")
    pack.set_defaults(command=_pack)
    _root(pack)
    pack.add_argument("data", type=Path, help="<modality>/<data set>/<split>/{images,labels}")
    pack.add_argument(
        "work", type=Path, nargs="?", help="of a background training: its best weights"
    )
    pack.add_argument("--modalities", nargs="+", default=list(ORDER))
    pack.add_argument("--left-out", type=Path, help="cases that are not used")
    pack.add_argument("--quality", type=int, help="of the slices' WebP, 1 to 100")
    pack.add_argument("--most", type=int, help="slices of a case")
    pack.add_argument("--side", type=int, help="longest side of a slice of one tile, pixels")
    pack.add_argument("--limit-mib", type=float, default=LARGEST_LOAD / MIB)
    pack.add_argument("--no-wheels", action="store_true", help="the machine has all packages")

    pack.add_argument(
        "--judge", action="store_true", help="weights that do not fit, so that new ones compare"
    )

    run = commands.add_parser("run", help="there: train and write the results")
    run.set_defaults(command=_run)
    _root(run)
    run.add_argument("--minutes", type=float, default=9.0, help="of the whole call, 9 at most")
    run.add_argument("--device", help="cuda if there is one")
    run.add_argument("--output", type=Path, help="folder of the results; $OUT by default")
    run.add_argument("--recipe", default=RECIPE)
    run.add_argument("--try", dest="speeds", nargs="*", choices=SPEEDS, default=["graphs"])
    run.add_argument("--processes", type=int, help="that train at a time")
    run.add_argument("--batch", type=int, help="views of a step")
    run.add_argument("--views", type=int, help="of each modality at most")
    run.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    run.add_argument("--modalities", nargs="+", default=[])
    run.add_argument("--no-inference", action="store_true", help="do not measure it")

    unpack = commands.add_parser("unpack", help="here: put files back, use the results")
    unpack.set_defaults(command=_unpack)
    _root(unpack)
    unpack.add_argument("results", type=Path, nargs="?", help="folder that the run wrote")
    unpack.add_argument("work", type=Path, nargs="?", help="its best/ and ledger.csv are changed")

    unpack.add_argument(
        "--take", nargs="+", default=[], help="modalities that replace those they did not surpass"
    )

    # what `run` starts in processes of their own
    trial = commands.add_parser("trial")
    trial.set_defaults(command=_trial)
    _root(trial)
    trial.add_argument("--modality", required=True)
    trial.add_argument("--device", required=True)
    trial.add_argument("--recipe", required=True)
    trial.add_argument("--batch", type=int)
    trial.add_argument("--sizes", nargs="+", type=int, required=True)
    trial.add_argument("--speeds", nargs="*", choices=SPEEDS, default=[])
    trial.add_argument("--output", type=Path, required=True)

    worker = commands.add_parser("worker")
    worker.set_defaults(command=_worker)
    worker.add_argument("--plan", type=Path, required=True)

    inference = commands.add_parser("inference")
    inference.set_defaults(command=_inference)
    inference.add_argument("--bundle", type=Path, required=True)
    inference.add_argument("--device", required=True)
    inference.add_argument("--output", type=Path, required=True)
    return parser


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="of the working tree")


def _tell(text: str) -> None:
    print(text, flush=True)


def _pack(options: argparse.Namespace) -> None:
    from esp_medsam_app.dataset.splits_on_disk import read_left_out
    from esp_medsam_app.gpu_machine.packing import Options, pack

    given = {
        name: value
        for name in ("quality", "most", "side")
        if (value := getattr(options, name)) is not None
    }
    how = Options(
        options.modalities,
        read_left_out(options.left_out) if options.left_out is not None else {},
        limit=int(options.limit_mib * MIB),
        wheels=not options.no_wheels,
        judge=options.judge,
        **given,
    )
    root = options.root.resolve()
    folder = Places(root).folder
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        load = pack(root, options.data, options.work, how, _tell)
    carried = f"{FOLDER}/{Places(root).carried.name}"
    _tell(f"{load.total / MIB:.1f} MiB travel: {load.largest()}")
    _tell(f"Carry the ignored folder {carried} and run there, in the root of the copy:")
    _tell('  bash scripts/train_on_gpu.sh run --minutes 9 --output "$OUT"')
    _tell("Then, whatever came of it: bash scripts/train_on_gpu.sh unpack [RESULTS [WORK]]")
    _tell("Until then other tracked files lie aside: do not commit.")


def _run(options: argparse.Namespace) -> None:
    import os

    import torch

    from esp_medsam_app.gpu_machine.running import Options, run

    root = options.root.resolve()
    output = options.output or Path(os.environ.get("OUT") or Places(root).folder / "results")
    how = Options(
        minutes=options.minutes,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        output=output.resolve(),
        recipe=options.recipe,
        speeds=options.speeds,
        processes=options.processes,
        batch=options.batch,
        views=options.views,
        sizes=options.sizes,
        modalities=options.modalities,
        inference=not options.no_inference,
    )
    run(root, how, _tell)


def _unpack(options: argparse.Namespace) -> None:
    from esp_medsam_app.gpu_machine.unpacking import unpack

    root = options.root.resolve()
    work = options.work or Places(root).folder / "unpacked"
    if not Places(root).folder.is_dir() and options.results is None:
        _tell("Nothing is packed.")
        return
    Places(root).folder.mkdir(exist_ok=True)
    with FileLock(Places(root).folder / "lock"):
        done = unpack(root, options.results, work, options.take)
    _tell(f"{done.files} files put back")
    if done.bundle is not None:
        _tell(f"{', '.join(done.modalities) or 'no modality'} into {done.bundle}")
        if done.kept_out:
            _tell(
                f"{', '.join(done.kept_out)}: not compared with the weights of the bundle, which "
                "stay; score them, then name them with --take"
            )
        _tell(f"{done.rows} rows added to the ledger")


def _trial(options: argparse.Namespace) -> None:
    import torch

    from esp_medsam_app.gpu_machine.costs import measure_costs
    from esp_medsam_app.gpu_machine.worker import planned_recipe

    measure_costs(
        Places(options.root).carried / "bundle",
        options.modality,
        planned_recipe(options.recipe, options.batch),
        torch.device(options.device),
        speeds=options.speeds,
        sizes=options.sizes,
        output=options.output,
    )


def _worker(options: argparse.Namespace) -> None:
    from esp_medsam_app.gpu_machine.worker import run_worker

    run_worker(options.plan)


def _inference(options: argparse.Namespace) -> None:
    import torch

    from esp_medsam_app.gpu_machine.inference_figures import measure_inference

    measure_inference(options.bundle, torch.device(options.device), options.output)


if __name__ == "__main__":
    raise SystemExit(main())
