from pathlib import Path

import pytest

from overopt.embedded.recipe import Recipe
from overopt.modules.optimizers import OptimizerSettings
from overopt.sweep.options import read_preset

PRESETS = sorted((Path(__file__).parents[2] / "conf" / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_of_the_project_are_recipes_other_than_the_default(file):
    assert read_preset(file) != Recipe()


def test_what_a_preset_leaves_out_is_the_default(tmp_path):
    file = tmp_path / "preset.yaml"
    file.write_text("align_steps: 12\npeak: {kl_budget: 8}\nalign_optimizer: {learning_rate: 0.001}\n")
    recipe = read_preset(file)
    assert (recipe.align_steps, recipe.peak.kl_budget, recipe.peak.standard_errors) == (12, 8.0, None)
    assert recipe.align_optimizer == OptimizerSettings("rmsprop", 0.001, 0.2)  # its warm-up too
    assert recipe.sft_steps == Recipe().sft_steps
    file.write_text("")
    assert read_preset(file) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("align_step: 3", "does not accept option 'align_step'"),
        ("align_steps: many", 'align_steps".*int.*many'),
        ("align_steps: 0", "at least 1 of everything, got align_steps=0"),
        ("peak: {kl_budget: -1}", "kl_budget is positive"),
        ("- align_steps", "is no preset"),
        ("a: [", "is no preset"),
    ],
)
def test_bad_presets_are_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "preset.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_preset(file)
    assert "\n" not in str(caught.value)


def test_a_preset_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.yaml is no preset: .*No such file"):
        read_preset(tmp_path / "none.yaml")
