import json

from overopt.evaluation.prediction_writer import PredictionWriter
from overopt.modules.direct_alignment import DirectAlignmentModule


def test_predictions_are_one_line_a_held_out_pair_in_the_datas_order(make_data, make_trainer, sft_checkpoint, tmp_path):
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    module = DirectAlignmentModule(str(sft_checkpoint))
    predictions = make_trainer(callbacks=[PredictionWriter()]).predict(module, datamodule=data)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row.pop("example_id") for row in rows] == [e.example_id for e in data.evaluation_set.examples]
    assert rows == [row for batch in predictions for row in batch]
    assert rows[0].keys() == {"chosen_implicit_reward", "rejected_implicit_reward"}
