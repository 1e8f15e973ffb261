"""Near-duplicates: found, and never chained into one heap."""

from gateway.learning.near_duplicates import balanced_groups, groups

LONG = "How many litres of water does a bathtub of average size in a hotel in Rome hold, roughly?"


def test_spelling_marks_and_a_changed_word_do_not_separate_prompts() -> None:
    """Case, marks, a polite word and one other word in a sentence stay in the group."""
    near = [LONG, LONG.upper(), "Please: " + LONG[:-1] + "!!", LONG.replace("Rome", "Bern")]
    assert len(set(groups(near).tolist())) == 1
    assert groups(["Café  au lait", "cafe\u0301 au lait?", "tea"]).tolist() == [0, 0, 2]


def test_different_prompts_stay_apart() -> None:
    """Another question, or other numbers in a short one, is another prompt."""
    others = [LONG, "Name three rivers of Peru.", "12 + 7 = ?", "80 - 3 = ?", "", "?"]
    assert len(set(groups(others).tolist())) == len(others)


def test_a_long_preamble_does_not_make_one_group_of_everything() -> None:
    """The threshold rises until no group is larger than a fold."""
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe") for b in ("ra", "si", "to", "vu")]
    prompts = [f"{LONG} {LONG[:40]} {word} {word}x" for word in words]
    assert len(set(groups(prompts).tolist())) == 1
    found, threshold = balanced_groups(prompts, folds=5)
    assert len(set(found.tolist())) == len(prompts)
    assert threshold > 0.7
