"""Recipes: those of the package, files, changes, schedules."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_medsam_app.errors import InputError
from esp_medsam_app.training.optimisation import rate_of
from esp_medsam_app.training.recipe import Recipe, recipes


@pytest.mark.parametrize("name", recipes())
def test_recipes_of_the_package_are_whole(name: str) -> None:
    assert Recipe.read(name, seed=3).seed == 3


def test_a_file_and_changes(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("views: 5\njoint_steps: 7\n")
    recipe = Recipe.read(tmp_path / "r.yaml", joint_steps=9)
    assert (recipe.views, recipe.joint_steps) == (5, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("veiws: 5", "veiws"),
        ("views: 0", "views"),
        ("- a", "not a recipe"),
        (": :", "not a recipe"),
    ],
)
def test_bad_recipes_are_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        Recipe.read(tmp_path / "r.yaml")


def test_unknown_recipe_names_the_known() -> None:
    with pytest.raises(InputError, match="two_cores"):
        Recipe.read("nothing")


def test_schedules() -> None:
    cosine = Recipe(warm_up=10)
    assert [rate_of(step, 1000, cosine) for step in (0, 9)] == [0.1, 1.0]
    assert rate_of(505, 1000, cosine) == pytest.approx(0.5, abs=0.01)
    assert rate_of(999, 1000, cosine) < 1e-4
    exponential = Recipe(warm_up=10, schedule="exponential", exponential_end=0.01)
    assert rate_of(505, 1000, exponential) == pytest.approx(0.1, abs=0.01)
    assert rate_of(999, 1000, exponential) == pytest.approx(0.01, abs=0.001)
