"""The tables of docs/rewards.md name every reward that ships, and no other."""

import re
from pathlib import Path

from unirl_env.rewards import SCORERS, needs_of

TEXT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]
BY_OPTIONS = {"weighted_sum", "product", "minimum", "judge", "http"}
"""What these look at is what their options say."""


def test_every_reward_has_a_row():
    names = [row[0].strip("`") for row in ROWS]
    assert sorted(names) == sorted(SCORERS)


def test_a_row_says_what_the_reward_looks_at():
    for name, looks_at, *more in ROWS:
        assert len(more) == 5 and more[0], name
        if name.strip("`") not in BY_OPTIONS:
            for field in needs_of(name.strip("`")):
                assert re.search(rf"\b{field}\b", looks_at), (name, field)
