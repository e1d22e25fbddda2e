"""Files that are moved aside are never lost: whenever a call is stopped, and however often."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.working_tree import FILES, git, is_whole

from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.moving import move_aside, put_back, stays, tracked
from esp_medsam_app.gpu_machine.places import Places


def test_only_what_the_machine_runs_stays(tree: Path) -> None:
    aside = Places(tree).aside
    moved = move_aside(tree, aside)
    assert {file.as_posix() for file in moved} == {
        "docs/images/a picture.png",
        "docs/link",
        "docs/page.md",
        "esp_medsam_app/weights/starter/decoder.safetensors",
        "tests/test.py",
    }
    assert {file.as_posix() for file in tracked(tree)} == {
        name for name in FILES if stays(Path(name))
    }
    assert len(put_back(tree, aside)) == len(moved)
    assert is_whole(tree)
    assert not aside.exists()
    assert put_back(tree, aside) == []


@pytest.mark.parametrize("survived", range(5))
@pytest.mark.parametrize("call", [move_aside, put_back])
def test_a_kill_between_any_two_files_loses_none(
    tree: Path,
    call: Callable[[Path, Path], list[Path]],
    survived: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aside = Places(tree).aside
    rename, left = os.rename, survived

    def dying(source: Path, target: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        rename(source, target)

    if call is put_back:
        move_aside(tree, aside)
    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        call(tree, aside)
    monkeypatch.setattr(os, "rename", rename)
    # as after a restart of the machine: nothing is known but the files
    put_back(tree, aside)
    assert is_whole(tree)
    assert not aside.exists()


def test_a_file_restored_by_git_is_kept_once(tree: Path) -> None:
    aside = Places(tree).aside
    move_aside(tree, aside)
    git(tree, "checkout", "--", "docs")
    put_back(tree, aside)
    assert is_whole(tree)
    assert not aside.exists()


def test_a_file_that_was_written_anew_is_not_overwritten(tree: Path) -> None:
    aside = Places(tree).aside
    move_aside(tree, aside)
    (tree / "docs" / "page.md").write_text("another page\n")
    for call in (put_back, move_aside):
        with pytest.raises(InputError, match=r"page\.md.*other content"):
            call(tree, aside)
        assert (tree / "docs" / "page.md").read_text() == "another page\n"
        assert (aside / "docs" / "page.md").read_text() == "moves\n"
    # all others were put back, but for what the second call moved again before it noticed
    (tree / "docs" / "page.md").unlink()
    put_back(tree, aside)
    assert is_whole(tree)


def test_no_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="git does not list"):
        move_aside(tmp_path, Places(tmp_path).aside)
