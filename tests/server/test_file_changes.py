"""Several files that change at one moment; what an odd journal says is not done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esp_medsam_app.data.whole_files import partial_of, remove_partials
from esp_medsam_app.server.file_changes import FileChanges, Kept


@pytest.fixture
def changes(tmp_path: Path) -> FileChanges:
    """Of a folder with a description and a label."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "described.json").write_text("before")
    (folder / "label").write_text("old")
    return FileChanges(folder / ".transaction.json", folder / "described.json")


def contents(changes: FileChanges) -> dict[str, str]:
    folder = changes.journal.parent
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def killed_after_the_journal(
    changes: FileChanges, removed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changes.journal.parent
    with monkeypatch.context() as patched:
        patched.setattr(FileChanges, "_apply", lambda *_: None)
        changes.make(
            [
                (folder / "history" / "1", Kept(folder / "label")),
                (folder / "label", b"new"),
                (folder / "described.json", b"after"),
            ],
            removed,
        )


def test_a_change_that_was_announced_is_completed(
    changes: FileChanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = changes.journal.with_name("gone")
    gone.write_text("x")
    killed_after_the_journal(changes, [gone], monkeypatch)
    assert changes.is_open
    assert contents(changes)["label"] == "old"
    assert changes.complete()
    expected = {"described.json": "after", "label": "new", "history/1": "old"}
    assert contents(changes) == expected
    assert not changes.complete()


def test_a_journal_of_another_time_is_dropped(
    changes: FileChanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that knows no journal has worked on the folder since."""
    killed_after_the_journal(changes, [changes.journal.with_name("label")], monkeypatch)
    changes.journal.with_name("described.json").write_text("newer")
    changes.journal.with_name("label").write_text("newer too")
    assert changes.complete()
    assert contents(changes) == {"described.json": "newer", "label": "newer too"}


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", ".", "link/outside"])
@pytest.mark.parametrize("what", ["replace", "remove"])
def test_a_journal_from_elsewhere_reaches_no_other_files(
    changes: FileChanges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (changes.journal.parent / "link").symlink_to(tmp_path)
    killed_after_the_journal(changes, [], monkeypatch)
    told = json.loads(changes.journal.read_bytes())
    told[what] = [name] if what == "remove" else [[told["replace"][0][0], name]]
    changes.journal.write_text(json.dumps(told))
    assert changes.complete()
    assert not changes.is_open
    assert outside.read_text() == "precious"
    assert contents(changes)["label"] == "old"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"replace": 1}', '{"replace": [["a"]]}'])
def test_a_damaged_journal_is_dropped(changes: FileChanges, content: str) -> None:
    changes.journal.write_text(content)
    assert changes.complete()
    assert contents(changes) == {"described.json": "before", "label": "old"}


def test_what_cannot_be_written_changes_nothing(
    changes: FileChanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changes.journal.parent
    with pytest.raises(OSError, match="missing"):
        changes.make([(folder / "label", b"new"), (folder / "b", folder / "missing")], [])
    assert contents(changes) == {"described.json": "before", "label": "old"}


def test_half_written_files_are_removed_and_no_others(tmp_path: Path) -> None:
    left = partial_of(tmp_path / "label.nii.gz")
    for file in (left, tmp_path / ".hidden", tmp_path / ".0123.x", tmp_path / "label.nii.gz"):
        file.write_text("x")
    assert remove_partials([tmp_path], older_than=60) == 0
    assert remove_partials([tmp_path], of=["other"]) == 0
    assert remove_partials([tmp_path, tmp_path / "nowhere"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".0123.x", ".hidden", "label.nii.gz"]
