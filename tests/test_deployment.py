"""Dockerfile, compose files and their documentation, without Docker: do they fit the project?"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from esp_medsam_app.cli import app
from esp_medsam_app.server.data_folder import DataFolder
from esp_medsam_app.server.door.settings import DoorSettings

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
PIP = re.compile(r"pip install ([^&\n]+)")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with continued lines put together."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


def arguments(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def serve_options() -> set[str]:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


def environment_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def compose(name: str = "compose.yaml", **environment: str) -> Any:
    """The file with its variables in place, as Docker would read it."""
    values = {**environment_example(), **environment}

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1], "")
        if not found and match[2] == "?":
            raise KeyError(match[1])
        return found or (match[3] or "" if match[2] == "-" else "")

    text = (ROOT / name).read_text(encoding="utf-8")
    return yaml.safe_load(VARIABLE.sub(value, text))


SECRETS = {"ESP_MEDSAM_TOKEN": "x" * 32, "PACS_PASSWORD": "secret"}


def test_the_image_is_installed_as_make_installs(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    dry = subprocess.run(
        ["make", "--dry-run", "install"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    by_make = [found.split() for found in PIP.findall(dry.stdout)]
    by_docker = [found.split() for run in arguments("RUN") for found in PIP.findall(run)]
    assert len(by_make) == 3
    assert by_docker == by_make
    # what the Makefile exports
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "export SAM2_BUILD_CUDA := 0" in makefile
    assert any("SAM2_BUILD_CUDA=0" in run for run in arguments("RUN"))
    assert any("PIP_DISABLE_PIP_VERSION_CHECK=1" in env for env in arguments("ENV"))
    (base,) = arguments("FROM")
    version = re.search(r"python:3\.(\d+)", base)
    assert version
    assert version[1] in ("11", "12")


def test_what_the_image_copies_is_there_and_sent_to_docker() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    for copied in arguments("COPY"):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, rule) for rule in sent)


def test_the_image_runs_without_rights_on_one_volume() -> None:
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["1000"]
    # nothing is run as root after that
    assert "RUN" not in names[names.index("USER") :]
    assert arguments("VOLUME") == ["/data"]
    entry = json.loads(arguments("ENTRYPOINT")[0])
    assert entry[:2] == ["esp-medsam", "serve"]
    assert {option for option in entry if option.startswith("--")} <= serve_options()
    assert entry[entry.index("--data") + 1] == "/data"
    assert entry[entry.index("--host") + 1] == "0.0.0.0"
    # all that the server writes lies there; its home does too
    written = DataFolder(Path("/data")).environment().values()
    assert all(path.startswith("/data/") for path in written)
    assert any("HOME=/data/" in env for env in arguments("ENV"))
    assert "/readyz" in arguments("HEALTHCHECK")[0]


def test_compose_starts_a_pacs_and_the_server_for_it() -> None:
    found = compose(**SECRETS)
    server, pacs = found["services"]["server"], found["services"]["pacs"]
    assert server["command"][0] in serve_options()
    assert server["command"][1].startswith("http://pacs:8042/dicom-web")
    assert server["environment"]["ESP_MEDSAM_TOKEN"] == "x" * 32
    orthanc = json.loads(found["configs"]["orthanc"]["content"])
    user, password = next(iter(orthanc["RegisteredUsers"].items()))
    assert server["environment"]["MONAI_LABEL_DICOMWEB_USERNAME"] == user
    assert server["environment"]["MONAI_LABEL_DICOMWEB_PASSWORD"] == password == "secret"
    assert orthanc["DicomWeb"]["Root"] == "/dicom-web/"
    assert orthanc["AuthenticationEnabled"] is True
    assert pacs["configs"][0]["source"] in found["configs"]
    for service in (server, pacs):
        assert set(service["networks"]) <= set(found["networks"])
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        assert volumes <= set(found["volumes"])
        # neither is open to the network before somebody wants it so
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
    # the PACS' web pages and REST interface are nobody's
    assert not any(":8042" in port for port in pacs["ports"])


def test_the_container_has_no_rights_and_a_read_only_root() -> None:
    server = compose(**SECRETS)["services"]["server"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in server["security_opt"]
    assert server["volumes"] == ["data:/data"]
    assert "privileged" not in server


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_compose_asks_for_passwords(missing: str) -> None:
    """None has a default that everybody knows."""
    with pytest.raises(KeyError, match=missing):
        compose(**{name: value for name, value in SECRETS.items() if name != missing})


def test_gpus_are_for_the_server() -> None:
    (service, said), *others = compose("compose.gpu.yaml")["services"].items()
    assert service in compose(**SECRETS)["services"]
    assert not others
    (devices,) = said["deploy"]["resources"]["reservations"]["devices"]
    assert devices["driver"] == "nvidia"
    assert devices["capabilities"] == ["gpu"]


def test_every_variable_is_in_the_example_and_every_one_there_is_of_use() -> None:
    ours = {f"ESP_MEDSAM_{name.upper()}" for name in DoorSettings.model_fields}
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    used = {name for name, _, _ in VARIABLE.findall(text)}
    told = set(environment_example())
    assert told == ours | used | {"MONAI_LABEL_CORS_ORIGINS"}


def test_the_example_can_be_read_as_it_is(tmp_path: Path) -> None:
    """By the server: nothing in it but defaults."""
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    assert DoorSettings(_env_file=tmp_path / ".env") == DoorSettings(_env_file=None)
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/.env", ".env")


def test_the_pages_name_what_there_is() -> None:
    pages = {name: (ROOT / "docs" / name).read_text() for name in ("deployment.md", "security.md")}
    told = set(environment_example()) | {
        "FORWARDED_ALLOW_IPS", "MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD",
        "MONAI_LABEL_AUTH_ENABLE", "MONAI_LABEL_AUTH_REALM_URI", "MONAI_LABEL_AUTH_CLIENT_ID",
    }  # fmt: skip
    for name, page in pages.items():
        for variable in re.findall(r"\b(?:ESP_MEDSAM|MONAI_LABEL|PACS)_[A-Z_]+\b", page):
            assert variable in told, f"{name}: {variable}"
        for link in re.findall(r"\]\(([\w./-]+)\)", page):
            assert (ROOT / "docs" / link).exists(), f"{name}: {link}"
    for topic in ("TLS", "GPU", "Backup", "Upgrade", "Reverse proxy"):
        assert f"## {topic}" in pages["deployment.md"] or f" {topic}" in pages["deployment.md"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/deployment.md" in readme
    assert "docs/security.md" in readme
