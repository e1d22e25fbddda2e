"""A small git repository that stands for the project's working tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

FILES = {
    ".gitignore": "/gpu_run/\n",
    "esp_medsam_app/code.py": "print('stays')\n",
    "esp_medsam_app/weights/starter/decoder.safetensors": "moves\n",
    "scripts/script.sh": "echo stays\n",
    "docs/page.md": "moves\n",
    "docs/images/a picture.png": "moves\n",
    "tests/test.py": "moves\n",
}


def make_tree(root: Path) -> Path:
    """A repository with these files and a link."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "docs" / "link").symlink_to("images")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "all")
    return root


def git(root: Path, *words: str) -> str:
    """What git says."""
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    ).stdout


def is_whole(root: Path) -> bool:
    """Whether every tracked file is where it was, with what it was."""
    return not git(root, "status", "--porcelain") and all(
        (root / name).read_text() == content for name, content in FILES.items()
    )
