"""The checks behind `esp-medsam doctor`.

They run on installations that are broken. So nothing but the standard library is imported before a
check needs it, and whatever a check raises becomes its finding.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.installation import DISTRIBUTION, Need, needs, pinned_versions

State = Literal["ok", "warning", "failed"]

CHECKOUT = Path(__file__).resolve().parent.parent
# what a server imports; each is where another part of an installation breaks
_IMPORTS = (
    "numpy", "torch", "torchvision", "monai", "nibabel", "SimpleITK", "pydicom", "pynetdicom",
    "dicomweb_client", "pydicom_seg", "segment_anything", "monailabel.main",
)  # fmt: skip
_IMPORT_SECONDS = 300
_LEAST_FREE, _LITTLE_FREE = 0.2e9, 2e9
_LITTLE_MEMORY, _LITTLE_GPU_MEMORY = 6e9, 3e9


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: name of the check.
        state: `failed` keeps something from working; a `warning` may.
        found: what is there.
        remedy: what to do about it; empty if nothing.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Setting:
    """What is to be checked.

    Attributes:
        bundle: weights; the starter bundle if None.
        app: the app folder a server loads, and writes its models and logs to.
        samples: the sample data folder.
        studies: folder a server offers, where it also keeps labels; or a PACS's address.
        host: a server's address.
        port: a server's port.
    """

    bundle: Path | None = None
    app: Path = CHECKOUT / "apps" / "esp_medsam"
    samples: Path = Path("sample_data/built")
    studies: str | Path = Path("sample_data/built/studies")
    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def pacs(self) -> str | None:
        """The address of the PACS, where the studies are in one."""
        studies = str(self.studies)
        return studies if studies.startswith(("http://", "https://")) else None


def diagnose(setting: Setting) -> Iterator[Finding]:
    """Run every check; findings come as they are made. Nothing is raised but KeyboardInterrupt."""
    for name, check in _CHECKS.items():
        try:
            yield from check(setting)
        except EspMedSamError as error:
            where = f"{error.path}: " if error.path is not None else ""
            yield Finding(name, "failed", where + error.problem, error.remedy or _reinstall())
        except Exception as error:
            # a broken installation raises anything
            found = f"{type(error).__name__}: {_one_line(error)}"
            yield Finding(name, "failed", found, _reinstall())


def check_python(_setting: Setting) -> Iterable[Finding]:
    """The interpreter is one that the package supports."""
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    found = f"{version} ({sys.executable})"
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield Finding("python", "ok", found)
    else:
        remedy = "Install Python 3.11 and run `make reinstall PYTHON=python3.11`"
        yield Finding("python", "failed", f"{found}; {wanted} is needed", remedy)


def check_packages(_setting: Setting) -> Iterable[Finding]:
    """Every package has what it needs; the versions are those that were tested."""
    everything = needs()
    unmet = [need for need in everything if not need.met]
    for need in unmet:
        found = f"{need.name} {need.found}" if need.found else f"{need.name} is missing"
        remedy = _pip_install(f'"{need.name}{need.wanted}"')
        yield Finding("packages", "failed", f"{found}; {need.by} needs {_wanted(need)}", remedy)
    count = len({need.name for need in everything})
    if not unmet:
        yield Finding("packages", "ok", f"{count} packages have what they need")
    pins = CHECKOUT / "requirements.txt"
    if pins.is_file():
        yield _compare_with_tested(pinned_versions(pins))


def check_imports(_setting: Setting) -> Iterable[Finding]:
    """The packages a server is made of can be imported; in another process, which may crash."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(name, flush=True)\n"
        "    importlib.import_module(name)\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *_IMPORTS],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("imports", "failed", f"not done after {_IMPORT_SECONDS} s", _reinstall())
        return
    if done.returncode == 0:
        yield Finding("imports", "ok", f"{_IMPORTS[-1]} and {len(_IMPORTS) - 1} more")
        return
    # other lines are what packages print when they are imported
    names = [line for line in done.stdout.splitlines() if line in _IMPORTS]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else f"the process ended with {done.returncode}"
    name = names[-1] if names else "python"
    yield Finding("imports", "failed", f"{name} cannot be imported: {reason}", _reinstall())


def check_modalities(_setting: Setting) -> Iterable[Finding]:
    """The catalogue can be read."""
    from esp_medsam_app.modalities import catalogue

    names = list(catalogue())
    if names:
        yield Finding("modalities", "ok", f"{len(names)}: {', '.join(names)}")
    else:
        yield Finding("modalities", "failed", "the catalogue is empty", _reinstall())


def check_weights(setting: Setting) -> Iterable[Finding]:
    """The bundle and its backbone are there, byte for byte."""
    from esp_medsam_app.weights import load_bundle

    bundle = load_bundle(setting.bundle)
    bundle.verify()
    names = ", ".join(sorted(bundle.modalities))
    yield Finding("weights", "ok", f"{bundle.path}: {names}; every SHA-256 is right")


def check_backbone(_setting: Setting) -> Iterable[Finding]:
    """The default backbone's file is there, byte for byte, whatever the bundle says."""
    from esp_medsam_app.weights.backbones import LITE_MEDSAM
    from esp_medsam_app.weights.integrity import check_sha256

    check_sha256(LITE_MEDSAM.path(), LITE_MEDSAM.sha256)
    yield Finding("backbone", "ok", f"{LITE_MEDSAM.name}: {LITE_MEDSAM.path()}")


def check_device(_setting: Setting) -> Iterable[Finding]:
    """What is computed on, and whether it has memory enough."""
    import torch

    from esp_medsam_app.inference.device import autocast_type

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found = f"{properties.name}, {_gigabytes(properties.total_memory)} (cuda:{index})"
            if properties.total_memory < _LITTLE_GPU_MEMORY:
                remedy = "If it runs out of memory, give --batch-size 1 or --device cpu"
                yield Finding("device", "warning", f"{found}; that is little", remedy)
            else:
                yield Finding("device", "ok", found)
        return
    found = f"CPU, {torch.get_num_threads()} threads"
    memory = _memory()
    if memory is not None:
        found += f", {_gigabytes(memory)}"
    if shutil.which("nvidia-smi") is not None:
        built_for = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        remedy = "Update the NVIDIA driver, or install the torch wheel that fits it"
        yield Finding("device", "warning", f"a GPU torch cannot use; {built_for}. {found}", remedy)
    elif memory is not None and memory < _LITTLE_MEMORY:
        remedy = "Close other programs; give --batch-size 1"
        yield Finding("device", "warning", f"{found}; that is little", remedy)
    elif autocast_type(torch.device("cpu")) is None:
        slow = "no GPU and no bfloat16, so that a slice takes more than a second"
        faster = "--profile compact or --runtime openvino make it faster"
        yield Finding("device", "ok", f"{found}; {slow}; {faster}")
    else:
        yield Finding("device", "ok", f"{found}; no GPU, so that a slice takes about a second")


def check_dcmqi(_setting: Setting) -> Iterable[Finding]:
    """The tool that writes DICOM SEG runs; MONAI Label would else download it at start-up."""
    tool = "itkimage2segimage"
    beside = str(Path(sys.executable).parent)
    search = os.pathsep.join([beside, os.environ.get("PATH", "")])
    path = shutil.which(tool, path=search)
    if path is None:
        yield Finding("dcmqi", "failed", f"{tool} is not found", _pip_install('"dcmqi>=1.5.7,<2"'))
        return
    done = subprocess.run(
        [path, "--help"], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
    if done.returncode == 0:
        yield Finding("dcmqi", "ok", path)
    else:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = said[-1] if said else f"it ended with {done.returncode}"
        remedy = _pip_install("--force-reinstall --no-deps dcmqi")
        yield Finding("dcmqi", "failed", f"{path} does not run: {reason}", remedy)


def check_port(setting: Setting) -> Iterable[Finding]:
    """A server could listen where it will."""
    from esp_medsam_app.server.launch import free_port

    try:
        free_port(setting.host, setting.port)
    except InputError as error:
        in_use = getattr(error.__cause__, "errno", None) == errno.EADDRINUSE
        remedy = (
            "If that is not your server, take another port: `esp-medsam serve --port 8001` "
            'or `make serve SERVE_ARGS="--port 8001"`'
        )
        yield Finding(
            "port",
            "warning" if in_use else "failed",
            error.problem,
            remedy if in_use else error.remedy,
        )
    else:
        yield Finding("port", "ok", f"{setting.host}:{setting.port} is free")


def check_folders(setting: Setting) -> Iterable[Finding]:
    """What a server writes to can be written to, and has room."""
    if setting.pacs is None:
        kept, name = Path(setting.studies), "studies folder"
    else:
        from esp_medsam_app.server.pacs.datastore import cache_folder

        kept, name = cache_folder(), "PACS's labels"
    for title, folder in (
        ("app folder", setting.app),
        (name, kept),
        ("temporary folder", Path(tempfile.gettempdir())),
    ):
        yield _check_folder(title, folder, must_exist=folder == setting.app)


def check_pacs(setting: Setting) -> Iterable[Finding]:
    """The PACS answers searches and gives instances, where the studies are in one."""
    if setting.pacs is None:
        return
    from esp_medsam_app.server.pacs.probing import probed

    yield Finding("PACS", *probed(setting.pacs))


def check_samples(setting: Setting) -> Iterable[Finding]:
    """The sample data is built."""
    from esp_medsam_app.samples import is_complete

    if is_complete(setting.samples):
        yield Finding("sample data", "ok", str(setting.samples))
    else:
        remedy = f"esp-medsam sample-data --output {setting.samples}"
        found = f"none, or an older one, in {setting.samples}"
        yield Finding("sample data", "warning", found, remedy)


_CHECKS: dict[str, Callable[[Setting], Iterable[Finding]]] = {
    "python": check_python,
    "packages": check_packages,
    "imports": check_imports,
    "modalities": check_modalities,
    "weights": check_weights,
    "backbone": check_backbone,
    "device": check_device,
    "dcmqi": check_dcmqi,
    "port": check_port,
    "folders": check_folders,
    "PACS": check_pacs,
    "sample data": check_samples,
}


def _compare_with_tested(pins: dict[str, str]) -> Finding:
    others = []
    for name, version in pins.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        # a build tag such as +cpu is no other version
        if found.partition("+")[0] != version.partition("+")[0]:
            others.append(f"{name} {found} instead of {version}")
    if not others:
        return Finding("tested versions", "ok", f"all {len(pins)} as in requirements.txt")
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return Finding("tested versions", "warning", ", ".join(others[:4]) + more, _reinstall())


def _check_folder(name: str, folder: Path, *, must_exist: bool) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if must_exist and existing != folder:
        remedy = "Run this where the project was cloned, or name the folder"
        return Finding(name, "failed", f"{folder} is missing", remedy)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = f"Give {_user()} write access, or choose another folder"
        found = f"{existing} cannot be written to ({error.strerror or error})"
        return Finding(name, "failed", found, remedy)
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {_gigabytes(free)} free"
    if free < _LITTLE_FREE:
        state: State = "failed" if free < _LEAST_FREE else "warning"
        return Finding(name, state, found, "Make room: models, logs and label maps go there")
    return Finding(name, "ok", found)


def _pip_install(what: str) -> str:
    return f"{sys.executable} -m pip install {what}"


def _reinstall() -> str:
    """How to bring the installation back to the tested set."""
    if (CHECKOUT / "requirements.txt").is_file():
        return f"In {CHECKOUT}: make reinstall"
    return _pip_install(f'--force-reinstall "{DISTRIBUTION}[server]"')


def _wanted(need: Need) -> str:
    return need.wanted or "it"


def _memory() -> int | None:
    """Main memory, bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _user() -> str:
    try:
        return f"user {os.getuid()}"
    except AttributeError:
        return "this user"


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no reason given"
