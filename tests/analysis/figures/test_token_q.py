import warnings

import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.style import drawing, rendered
from overopt.analysis.figures.token_q import (
    LINE_LENGTH,
    draw_heat_map,
    draw_over_betas,
    draw_over_training,
    draw_values_against_beta,
    drawn_token,
    heat_map_texts,
    last_checkpoints,
    lines_of,
)

ODD = [" a$b$", "\n\n", "\ufffd", "漢字", "🦀", "\x07", "$\\frac{", "<|endoftext|>", "w" * 99, "\u2028", "&<>\"'", " "]


@pytest.fixture
def tokens():
    draws = np.random.default_rng(0)
    rows = [
        {
            "run": "dpo-beta0.1",
            "prompt_id": prompt,
            "response": response,
            "token": token,
            "examples_seen": seen,
            "beta": 0.5,
            "log_prob": -draws.exponential(),
            "reference_log_prob": -draws.exponential(),
            "unseen_share": draws.uniform(),
            "reference_unseen_share": draws.uniform(),
            "prefix_seen": place < 5,
        }
        for seen in (0, 32)
        for prompt in ("p", "q")
        for response in ("chosen", "sampled")
        for place, token in enumerate(ODD)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def summary():
    rows = [
        {
            "run": f"dpo-beta{beta}",
            "objective": "dpo",
            "beta": beta,
            "examples_seen": seen,
            "response": response,
            "reference_unseen_share": 0.8,
            "unseen_share_change": seen / 1000 / beta,
            "unseen_share_change_se": 0.01,
            "optimism": seen / 500,
            "optimism_se": np.nan,  # one prompt
            "optimism_share": seen / 100 if seen else np.nan,
            "optimism_share_se": 0.01,
        }
        for beta in (0.05, 0.5)
        for seen in (0, 16, 32)
        for response in ("chosen", "rejected")
    ]
    return pd.DataFrame(rows)


def test_a_line_is_broken_between_tokens_and_never_within_one():
    widths = np.random.default_rng(1).integers(1, LINE_LENGTH, 200).tolist()
    places = lines_of(widths)
    for (line, start), width, (following, _) in zip(places, widths, places[1:], strict=False):
        assert start + width <= LINE_LENGTH
        assert following in (line, line + 1)
    assert places[-1][0] > 50
    assert lines_of([LINE_LENGTH + 9, 1]) == [(0, 0), (1, 0)]


def test_the_implicit_reward_is_summed_along_a_response_and_shares_off_the_data_are_left_out(tokens):
    texts = heat_map_texts(last_checkpoints(tokens), {"p": "a prompt\nTL;DR:", "q": ""})
    assert len(texts) == 4
    assert texts[0].title == "chosen, after: a prompt⏎TL;DR:"
    of_first = tokens[(tokens["examples_seen"] == 32) & (tokens["prompt_id"] == "p") & (tokens["response"] == "chosen")]
    last = 0.5 * (of_first["log_prob"].sum() - of_first["reference_log_prob"].sum())
    assert texts[0].values["implicit_reward"][-1] == pytest.approx(last)
    assert np.isnan(texts[0].values["unseen_share"]).tolist() == [False] * 5 + [True] * 7


def test_odd_tokens_are_drawn_without_a_warning_and_as_text(tokens):
    texts = heat_map_texts(last_checkpoints(tokens), {"p": "cost $5 or $6: 漢\n", "q": "&<>"})
    with drawing(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_heat_map(texts, "dpo-beta0.1 $x$")
        assert rendered(figure, "png")
        assert b"<svg" in rendered(figure, "svg")
    assert any(text.get_text() == " a$b$" for ax in figure.axes for text in ax.texts)
    assert all(len(drawn_token(token)) for token in ODD)


def test_curves_have_a_line_a_run_and_a_panel_a_kind_of_response(summary):
    with drawing(), warnings.catch_warnings():
        warnings.simplefilter("error")
        training, betas = draw_over_training(summary), draw_over_betas(summary)
        assert rendered(training, "png")
        assert rendered(betas, "png")
    lines = [line for line in training.axes[0].lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata().tolist() for line in lines] == [[0, 0.32, 0.64], [0, 0.032, 0.064]]
    assert len(training.axes) == len(betas.axes) == 6
    (line,) = [line for line in betas.axes[0].lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] > 0]
    np.testing.assert_allclose(line.get_ydata(), [0.64, 0.064])


def test_a_dot_marks_each_policys_own_beta():
    rows = [
        {
            "run": f"dpo-beta{beta}",
            "beta": beta,
            "examples_seen": 32,
            "response": "chosen",
            "other_beta": beta * factor,
            "at_fixed_reward": 1 / factor,
            "at_fixed_q": factor,
            "at_fixed_reward_limit": 20.0,
        }
        for beta in (0.05, 0.5)
        for factor in (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0)
    ]
    with drawing():
        figure = draw_values_against_beta(pd.DataFrame(rows))
        assert rendered(figure, "png")
    for ax in figure.axes:
        dots = [line for line in ax.lines if len(line.get_xdata()) == 1]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [(0.05, 1.0), (0.5, 1.0)]
