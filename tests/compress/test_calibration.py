"""The choice of data: what holds of each filter, on planted and on real text."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from compress.examples.choose import (
    choose,
    distill_quality,
    keep_top,
    perplexity_contrast,
    rare_word_filter,
    soft_log,
    soft_log_downsample,
    word_counts,
)


@given(st.floats(0.5, 1e6), st.floats(0.5, 1e4))
def test_soft_log_is_smooth_and_rises(count, threshold):
    kept = soft_log(count, threshold)
    assert 0 < kept <= count
    assert soft_log(count * 1.01, threshold) > kept
    if count > threshold:
        assert kept == pytest.approx(threshold * (1 + math.log(count / threshold)))


def test_soft_log_has_slope_1_at_the_threshold():
    step = 1e-4
    below, at, above = (soft_log(10 + d, 10) for d in (-step, 0, step))
    assert at == 10
    assert (at - below) / step == pytest.approx(1, abs=1e-3)
    assert (above - at) / step == pytest.approx(1, abs=1e-3)
    assert soft_log(1e5, math.inf) == 1e5
    with pytest.raises(ValueError, match="above 0"):
        soft_log(3, 0)


def test_frequent_texts_are_said_less_often():
    texts = ["weather"] * 1000 + ["a rare question"] * 2 + ["news"] * 50
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    kept = soft_log_downsample(texts, 10, seed=3)
    counts = collections.Counter(texts[index] for index in kept)
    assert counts["a rare question"] == 2
    assert counts["weather"] in (56, 57) and counts["news"] in (26, 27)  # 56.05, 26.09
    assert kept == sorted(set(kept)) == soft_log_downsample(texts, 10, seed=3)
    assert kept != soft_log_downsample(texts, 10, seed=4)
    assert soft_log_downsample(texts, math.inf) == list(range(len(texts)))
    # The fraction is kept by chance: on average just as many.
    many = [len(soft_log_downsample(["a"] * 7, 2, seed=seed)) for seed in range(400)]
    assert np.mean(many) == pytest.approx(soft_log(7, 2), abs=0.1)


def lines(shared_data) -> list[str]:
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text()
    return [line for line in text.split("\n") if line][:4000]


def test_every_kept_line_has_a_rare_word(shared_data):
    texts = lines(shared_data)
    heard = word_counts(texts[:2000])
    kept = set(rare_word_filter(texts, heard, 2))
    for index, text in enumerate(texts):
        assert (index in kept) == (min(heard[word] for word in text.split()) <= 2)
    assert 0 < len(kept) < len(texts)
    # Tokens are words, too; a higher limit keeps more.
    tokens = [[1, 2], [2, 2], [1, 3]]
    assert rare_word_filter(tokens, word_counts(tokens), 1) == [2]
    assert kept < set(rare_word_filter(texts, heard, 10))


def unigram(texts):
    counts = word_counts(texts)
    total = sum(counts.values())
    return lambda text: float(
        np.mean([math.log((counts[word] + 1) / (total + 10000)) for word in text.split()])
    )


def test_contrast_finds_the_domain_whatever_the_scale(shared_data):
    plays = lines(shared_data)
    news = (shared_data / "text" / "wikitext2_valid.txt").read_text().split("\n")
    news = [line for line in news if len(line.split()) > 5][:1000]
    mixed = plays[2000:3000] + news[500:]
    target, background = unigram(plays[:2000]), unigram(plays[:2000] + news[:500])
    kept = perplexity_contrast(mixed, target, background, 0.3)
    assert len(kept) == round(0.3 * len(mixed))
    assert np.mean(np.array(kept) < 1000) > 0.95  # of which are two thirds by chance
    moved = perplexity_contrast(mixed, lambda t: target(t) + 2, lambda t: background(t) - 3, 0.3)
    assert moved == kept
    # The likelihood alone is no contrast.
    assert perplexity_contrast(mixed, target, lambda _: 0.0, 0.3) != kept


def test_keep_top_is_exact():
    assert keep_top([3.0, 1.0, 3.0, 3.0], 0.5) == [0, 2]
    assert keep_top([1.0, 2.0], 0) == [] and keep_top([1.0, 2.0], 1) == [0, 1]
    with pytest.raises(ValueError, match="not a number"):
        keep_top([1.0, math.nan], 0.5)
    with pytest.raises(ValueError, match="share"):
        keep_top([1.0], 25)


def planted(seed: int, count: int):
    """Texts of words that have a worth, and the grader that adds it up."""
    worth = np.random.default_rng(0).normal(size=200)
    generator = np.random.default_rng(seed)
    texts = [" ".join(f"word{i}" for i in generator.integers(0, 200, 40)) for _ in range(count)]

    def grader(text):
        total = sum(worth[int(word[4:])] for word in text.split())
        return 1 / (1 + math.exp(-total / 3))

    return texts, grader


def test_a_classifier_learns_a_grader():
    texts, grader = planted(1, 3000)
    asked = []
    found = distill_quality(lambda t: asked.append(t) or grader(t), texts, 2000, ngrams=1)
    assert len(asked) == 2000
    held, _ = planted(2, 500)
    scores = found.scores(held)
    assert spearmanr(scores, [grader(text) for text in held]).statistic > 0.95
    assert ((scores > 0) & (scores < 1)).all()
    again = distill_quality(grader, texts, 2000, ngrams=1)
    np.testing.assert_array_equal(again.scores(held), scores)
    # A grader that says the same in other words (a paraphrased prompt) leads to the same order.
    softer = distill_quality(lambda text: 0.2 + 0.6 * grader(text), texts, 2000, ngrams=1)
    assert spearmanr(scores, softer.scores(held)).statistic > 0.95
    assert len(keep_top(scores, 0.25)) == 125


def test_graders_that_teach_nothing():
    texts, _ = planted(1, 20)
    with pytest.raises(ValueError, match="nothing to learn"):
        distill_quality(lambda text: 1.0, texts)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        distill_quality(lambda text: 7.0, texts)


def test_classes_are_chosen_by_turns():
    labels = np.repeat(np.arange(5), [500, 100, 40, 20, 3])
    images = np.zeros((len(labels), 2), np.float32)
    chosen = choose(images, labels, 50, seed=1)
    assert len(set(chosen.tolist())) == 50
    assert np.bincount(labels[chosen], minlength=5).tolist() == [12, 12, 12, 11, 3]
    assert set(labels[chosen[:5]]) == set(range(5))  # the beginning is balanced as well
    np.testing.assert_array_equal(chosen, choose(images, labels, 50, seed=1))
    assert chosen.tolist() != choose(images, labels, 50, seed=2).tolist()
    scores = np.linspace(0, 1, len(labels))
    best = choose(images, labels, 10, scores=scores)
    assert sorted(best.tolist()) == [498, 499, 598, 599, 638, 639, 658, 659, 661, 662]


def test_token_windows_are_filtered():
    generator = np.random.default_rng(0)
    windows = generator.integers(0, 50, (300, 8)).astype(np.int32)
    windows[::2] = 7  # half of all is one window
    windows[1, 3] = 99
    targets = windows.copy()
    chosen = choose(windows, targets, 300)
    frequent = (windows[chosen] == 7).all(axis=1).sum()
    assert frequent in (6, 7)  # 1 + ln 150 = 6.01
    assert len(choose(windows, targets, 300, threshold=None)) == 300
    rare = choose(windows, targets, 300, most=1)
    assert rare.tolist() == [1]
    # Filters that would leave nothing leave all.
    assert len(choose(windows[::2], targets[::2], 20, most=0)) == 20


def test_trees_and_bad_counts():
    inputs = {"features": np.zeros((9, 3, 2), np.float32), "frames": np.arange(9)}
    targets = {"labels": np.zeros((9, 2), np.int32)}
    assert sorted(choose(inputs, targets, 20).tolist()) == list(range(9))
    assert len(choose(inputs, None, 4)) == 4
    with pytest.raises(ValueError, match="at least 1"):
        choose(inputs, targets, 0)
    with pytest.raises(ValueError, match="expected one each"):
        choose(inputs, targets, 3, scores=[1.0])
