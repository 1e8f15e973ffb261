"""`headgate users`, rate limits by command, and `headgate audit`."""

from tests.gateway.cli.conftest import Headgate


def test_users_come_and_go_with_their_keys(headgate: Headgate) -> None:
    """A key may belong to a user; removing him revokes it, and the list keeps him."""
    made = headgate.json("users", "create", "ann", "--team", "search", "--rpm", "5", "--json")
    assert made == {"name": "ann", "team": "search"}
    key = headgate.json("keys", "create", "--team", "search", "--user", "ann", "--json")
    (listed,) = headgate.json("users", "list", "--json")
    assert (listed["name"], listed["limits"]) == ("ann", {"requests_per_minute": 5})
    gone = headgate.json("users", "remove", "ann", "--json")
    assert gone["keys_revoked"] == 1
    (shown,) = headgate.json("keys", "list", "--json")
    assert (shown["id"], shown["user"]) == (key["id"], "ann")
    assert shown["revoked_at"]
    assert "ann" in headgate.run("users", "list").stdout
    assert headgate.run("users", "remove", "bob").exit_code == 1


def test_limits_are_set_shown_and_taken_away(headgate: Headgate) -> None:
    """Of keys and teams; dollars stay decimal; those not given are gone."""
    key = headgate.json("keys", "create", "--team", "search", "--tpm", "9", "--json")["id"]
    limit = ("keys", "limit", key, "--json")
    assert headgate.json(*limit, "--usd-per-minute", "0.10")["limits"] == {"usd_per_minute": "0.1"}
    assert headgate.json(*limit)["limits"] == {}
    headgate.json("teams", "limit", "search", "--weight", "3", "--concurrent", "2", "--json")
    (team,) = headgate.json("teams", "list", "--json")
    assert (team["weight"], team["limits"]) == (3, {"concurrent_requests": 2})
    assert headgate.run("keys", "limit", key, "--rpm", "-1").exit_code == 2
    assert headgate.run("teams", "limit", "search", "--weight", "0").exit_code == 2
    assert headgate.run("teams", "limit", "nobody").exit_code == 1


def test_restrictions_and_roles_are_options_of_a_new_key(headgate: Headgate) -> None:
    """Each can be given again; what means nothing exits 2."""
    create = ("keys", "create", "--team", "search")
    headgate.json(
        *create, "--model", "small", "--model", "nano", "--network", "10.0.0.0/8", "--json"
    )
    headgate.json(*create, "--scope", "admin", "--role", "auditor", "--json")
    first, second = headgate.json("keys", "list", "--json")
    assert first["only"] == {"models": ["small", "nano"], "networks": ["10.0.0.0/8"]}
    assert (first["role"], second["role"]) == (None, "auditor")
    assert headgate.run(*create, "--network", "somewhere").exit_code == 2
    assert headgate.run(*create, "--role", "auditor").exit_code == 2


def test_commands_stand_in_the_audit_log(headgate: Headgate) -> None:
    """Who ran what with what outcome, the newest first, and no secret."""
    made = headgate.json("keys", "create", "--team", "search", "--json")
    headgate.json("budgets", "set", "--scope", "global", "--limit-usd", "5", "--json")
    assert headgate.run("budgets", "set", "--scope", "team:a", "--limit-usd", "-5").exit_code == 2
    assert headgate.run("keys", "revoke", "key_none").exit_code == 1
    headgate.json("db", "prune", "--days", "30", "--json")
    pruned, unknown, negative, budget, key = headgate.json("audit", "--json")
    assert budget["actor"].startswith("cli")
    assert (key["action"], key["details"]["id"]) == ("keys.create", made["id"])
    assert (budget["action"], budget["details"]["limit_usd"]) == ("budgets.set", "5")
    assert (negative["outcome"], negative["target"]) == ("failed", "team:a")
    assert "allowed: more than 0" in negative["details"]["why"]
    assert (unknown["action"], unknown["outcome"]) == ("keys.revoke", "failed")
    assert (pruned["action"], pruned["details"]["retention_days"]) == ("db.prune", 30)
    acts = [pruned, unknown, negative, budget, key]
    assert made["key"] not in str(acts)
    assert "keys.create" in headgate.run("audit").stdout
    assert headgate.json("budgets", "overruns", "--json") == []
