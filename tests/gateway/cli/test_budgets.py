"""`headgate budgets`."""

import pytest

from tests.gateway.cli.conftest import Headgate


def test_budget_is_set_changed_listed_and_removed(headgate: Headgate) -> None:
    """Amounts come back as plain decimals; setting again changes the limit."""
    ask = ("budgets", "set", "--scope", "team:T", "--window", "day", "--json")
    made = headgate.json(*ask, "--limit-usd", "5")
    assert (made["scope"], made["window"], made["limit_usd"]) == ("team:T", "day", "5")
    headgate.json(*ask, "--limit-usd", "0.000000001", "--soft")
    (listed,) = headgate.json("budgets", "list", "--json")
    assert listed == {
        "scope": "team:T",
        "window": "day",
        "soft": True,
        "tz": "UTC",
        "alert_percents": [80, 100],
        "downgrade_percent": None,
        "downgrade_policy": None,
        "limit_usd": "0.000000001",
        "spent_usd": "0",
        "reserved_usd": "0",
        "overrun_usd": "0",
        "left_usd": "0.000000001",
    }
    assert "team:T" in headgate.run("budgets", "list").stdout
    assert headgate.run("budgets", "remove", "--scope", "team:T", "--window", "day").exit_code == 0
    assert headgate.json("budgets", "list", "--json") == []
    assert headgate.run("budgets", "remove", "--scope", "team:T").exit_code == 1


@pytest.mark.parametrize("unknown", ["team:serach", "key:k1", "model:large"])
def test_budget_of_nobody_is_set_with_a_warning(headgate: Headgate, unknown: str) -> None:
    """One may be there before its team is; a name misspelt would limit nothing for ever."""
    made = headgate.run("budgets", "set", "--scope", unknown, "--limit-usd", "5")
    assert made.exit_code == 0
    name = unknown.partition(":")[2]
    assert f"'{name}': this budget limits nothing" in made.stderr
    headgate.json("teams", "create", "search", "--json")
    for known in ("team:search", "model:small", "user:ann", "tag:env=prod", "global"):
        asked = ("budgets", "set", "--scope", known, "--limit-usd", "5", "--json")
        assert headgate.json(*asked)["warning"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        ["--scope", "team:T", "--limit-usd", "-5"],
        ["--scope", "team:T", "--limit-usd", "0"],
        ["--scope", "team:T", "--limit-usd", "five"],
        ["--scope", "team:T", "--limit-usd", "NaN"],
        ["--scope", "team:T", "--limit-usd", "1e30"],
        ["--scope", "T", "--limit-usd", "5"],
        ["--scope", "team:T", "--limit-usd", "5", "--window", "fortnight"],
        ["--scope", "team:T", "--limit-usd", "5", "--tz", "Mars/Olympus"],
        ["--scope", "team:T", "--limit-usd", "5", "--alert-at", "0"],
        ["--scope", "team:T", "--limit-usd", "5", "--downgrade-at", "90"],
        ["--limit-usd", "5"],
    ],
)
def test_bad_budgets_exit_2(headgate: Headgate, wrong: list[str]) -> None:
    """Negative, zero, words, too much, no scope: exit 2, a reason on stderr, nothing set."""
    result = headgate.run("budgets", "set", *wrong)
    assert result.exit_code == 2
    assert result.stderr.strip()
    assert "Invalid body" not in result.stderr
    assert headgate.json("budgets", "list", "--json") == []
