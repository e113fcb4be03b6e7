import pytest

from overopt.evaluation.judges.longer import LongerJudge
from overopt.evaluation.records import Comparison, Verdict

# Fewer words but more characters, equal in both, more words.
TEXTS = [(" Extraordinarily long.", " a b c"), (" one two", "two one "), (" a b c d", " a b c")]
COMPARISONS = [Comparison(str(i), "Post:", sample, opponent) for i, (sample, opponent) in enumerate(TEXTS)]


@pytest.mark.parametrize(("unit", "kinds"), [("words", ["loss", "tie", "win"]), ("characters", ["win", "tie", "win"])])
def test_the_longer_text_wins_in_the_unit_asked_for(unit, kinds):
    told: dict[int, Verdict] = {}
    verdicts = LongerJudge(unit).judge(COMPARISONS, told.__setitem__)
    assert [v.kind for v in verdicts] == kinds
    assert [v.win_probability for v in verdicts] == [{"win": 1.0, "tie": 0.5, "loss": 0.0}[kind] for kind in kinds]
    assert [told[place] for place in range(3)] == verdicts
    assert unit in LongerJudge(unit).settings["judge"]
