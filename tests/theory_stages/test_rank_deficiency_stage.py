import json

import pandas as pd
import pytest

from overopt.cli import main
from overopt.tracking.store import open_store

SMALL = ["--objectives", "ipo", "--betas", "0.5", "--lambdas", "1", "--draws", "5", "--descent-steps", "20"]
ROWS = [
    *({"prompt": "p", "response": name, "reference_probability": 0.25} for name in "abcd"),
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "a", "rejected": "c"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # By its whole path: MLflow keeps the store that it has once opened under a relative one.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "covered.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS if row.get("response") != "d")
    )
    return tmp_path


def test_the_paper_s_tree_is_printed_written_drawn_and_tracked(folder, capsys):
    main(["rank-deficiency", *SMALL, "--objectives", "dpo", "slic", "--out", "out"])
    printed = capsys.readouterr().out
    assert "rank 1, null space 26, freedom 25" in printed
    equal = pd.read_csv(folder / "out/equal_loss.csv")
    assert equal["ood_mass_recomputed"].agg(["min", "max"]).tolist() == pytest.approx([0.001, 0.999])
    assert equal["loss_difference"].abs().max() < 1e-9
    assert (equal["loss_recomputed"] - equal["loss"]).abs().max() < 1e-9
    for name in ("equal_loss", "preferences_needed", "regularised", "starts", "rlhf"):
        assert (folder / f"out/figures/{name}.svg").read_text().startswith("<?xml")
        assert (folder / f"out/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    client = open_store(create=False)
    [run] = client.search_runs([client.get_experiment_by_name("overopt").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["overopt.stage"] == "study"
    assert run.data.metrics["freedom"] == 25
    assert run.data.metrics["largest_loss_difference"] < 1e-9
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "tables")}
    assert "tables/regularised.csv" in logged


def test_a_set_from_a_file_is_studied_like_the_tree(folder, capsys):
    main(["rank-deficiency", *SMALL, "--files", "set.jsonl", "--out", "out"])
    assert "4 responses to 1 prompt(s), 2 preference(s): rank 2, null space 2, freedom 1" in capsys.readouterr().out


def test_another_tree_takes_its_own_data(folder, capsys):
    tree = ["--branching", "2", "--depth", "2", "--demonstrations", "a0 a0", "--preferences", "a1 a0 > a0 a1"]
    main(["rank-deficiency", *SMALL, *tree, "--out", "out"])
    assert "4 responses to 1 prompt(s), 1 preference(s): rank 1, null space 3, freedom 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--branching", "4"], "--demonstrations"),
        (["--branching", "1"], "at least 2"),
        (["--branching", "10", "--depth", "9"], "10^9"),
        (["--preferences", "a0 a0 a0 > a0 a0 a0"], "to itself"),
        (["--preferences", "a0 a0 a0"], "CHOSEN > REJECTED"),
        (["--demonstrations", "a0 a0 a7"], "outside the tree"),
        (["--demonstration-mass", "1"], "demonstration mass"),
        (["--files", "gone.jsonl"], "gone.jsonl"),
        (["--files", "set.jsonl", "--depth", "2"], "not both"),
        (["--files", "covered.jsonl"], "sum to 0.75"),
        (["--objectives", "dpp"], "'dpp'; one of dpo"),
        (["--betas", "0"], "beta > 0"),
        (["--betas", "small"], "small"),
        (["--lambdas", "-1"], "lambdas > 0"),
        (["--ood-masses", "1"], "between 0 and 1"),
        (["--draws", "0"], "--draws 0"),
        (["--descent-steps", "0"], "--descent-steps 0"),
        (["--ridge", "0"], "ridge > 0"),
        (["--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(arguments, named, folder, capfd):
    with pytest.raises(SystemExit) as end:
        main(["rank-deficiency", *arguments, "--out", "out"])
    errors = capfd.readouterr().err
    assert end.value.code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert named in last
    assert not (folder / "out").exists()
