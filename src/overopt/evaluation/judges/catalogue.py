"""Judges by the names that people type; each constructor is the schema of its options."""

_HERE = __name__.rpartition(".")[0]

JUDGES = {
    "api": f"{_HERE}.api.ApiJudge",
    "gold": f"{_HERE}.gold_reward.gold_reward_judge",
    "classifier": f"{_HERE}.reward_classifier.RewardClassifierJudge",
    "causal_lm": f"{_HERE}.causal_lm.causal_lm_judge",
    "rouge": f"{_HERE}.rouge.RougeJudge",
    "longer": f"{_HERE}.longer.LongerJudge",
}
