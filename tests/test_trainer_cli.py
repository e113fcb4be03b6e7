import pytest
import yaml

from overopt.trainer_cli import run

ALIGNMENT = "overopt.modules.direct_alignment.DirectAlignmentModule"


def configuration(capsys, *arguments):
    """What ``fit`` with these arguments would run."""
    with pytest.raises(SystemExit) as end:
        run(["fit", *arguments, "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_a_bare_fit_is_sft(capsys):
    assert configuration(capsys)["model"]["class_path"] == "overopt.modules.sft.SFTModule"
    changed = configuration(capsys, "--model.architecture.num_layers", "1")["model"]
    assert changed["init_args"]["architecture"]["num_layers"] == 1


def test_a_named_model_has_its_own_defaults_and_none_of_sfts(capsys, tmp_path):
    (tmp_path / "model.yaml").write_text(f"model: {{class_path: {ALIGNMENT}, init_args: {{reference: some}}}}\n")
    (tmp_path / "overlay.yaml").write_text("model: {init_args: {objective: ipo}}\n")
    configs = ["--config", str(tmp_path / "model.yaml"), f"--config={tmp_path / 'overlay.yaml'}"]
    for arguments in (["--model", ALIGNMENT, "--model.reference", "some", "--model.objective", "ipo"], configs):
        model = configuration(capsys, *arguments)["model"]
        assert (model["class_path"], model["init_args"]["objective"]) == (ALIGNMENT, "ipo")
        optimizer = model["init_args"]["optimizer"]
        # The paper's, in every setting: SFT's AdamW has other values of all of them.
        assert (optimizer["name"], optimizer["learning_rate"], optimizer["warmup_steps"]) == ("rmsprop", 0.5e-6, 150)
        assert optimizer["decay"] == "constant"


def test_a_budget_of_kl_is_set_by_a_file_or_by_options_and_off_by_default(capsys, tmp_path):
    assert configuration(capsys)["stop_at_kl"] is None
    (tmp_path / "budget.yaml").write_text(
        "stop_at_kl:\n  budget: 10\n  action: keep_best\n"
        "  judge: {class_path: overopt.evaluation.judges.longer.LongerJudge, init_args: {unit: words}}\n"
    )
    judge = ["--stop_at_kl.judge", "overopt.evaluation.judges.longer.LongerJudge"]
    for arguments in (
        ["--config", str(tmp_path / "budget.yaml")],
        ["--stop_at_kl.budget", "10", "--stop_at_kl.action", "keep_best", *judge],
    ):
        settings = configuration(capsys, *arguments)["stop_at_kl"]["init_args"]
        assert (settings["budget"], settings["action"]) == (10.0, "keep_best")
        assert settings["judge"]["init_args"] == {"unit": "words"}
