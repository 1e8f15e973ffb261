"""`headgate keys` and `headgate teams`."""

import json

from tests.gateway.cli.conftest import Headgate


def test_created_key_prints_id_and_secret_once(headgate: Headgate) -> None:
    """--json has exactly id and key; lists show only the first characters."""
    made = headgate.json("keys", "create", "--team", "search", "--name", "ci", "--json")
    assert set(made) == {"id", "key"}
    assert made["key"].startswith("hg-")
    (listed,) = headgate.json("keys", "list", "--json")
    assert (listed["id"], listed["team"], listed["name"]) == (made["id"], "search", "ci")
    assert made["key"] not in headgate.run("keys", "list").stdout
    assert made["key"][:8] in headgate.run("keys", "list").stdout
    assert headgate.json("keys", "list", "--team", "ads", "--json") == []
    shown = headgate.run("keys", "create", "--team", "search").stdout
    assert "only time" in shown


def test_revoked_and_rotated_keys_say_so(headgate: Headgate) -> None:
    """Rotation keeps the id and changes the secret; a revoked key is shown as such."""
    made = headgate.json("keys", "create", "--team", "search", "--json")
    new = headgate.json("keys", "rotate", made["id"], "--overlap-s", "60", "--json")
    assert new["id"] == made["id"]
    assert new["key"] != made["key"]
    assert "is revoked since" in headgate.run("keys", "revoke", made["id"]).stdout
    assert "revoked" in headgate.run("keys", "list").stdout
    refused = headgate.run("keys", "rotate", made["id"])
    assert refused.exit_code == 2
    assert "revoked" in refused.stderr


def test_mistakes_are_named(headgate: Headgate) -> None:
    """Unknown ids exit 1; bad names, scopes and dates exit 2; messages say what is allowed."""
    unknown = headgate.run("keys", "revoke", "key_nobody")
    assert unknown.exit_code == 1
    assert "key_nobody" in unknown.stderr
    for wrong in (
        ["--team", " "],
        ["--team", "anonymous"],
        ["--team", "a", "--scope", "root"],
        ["--team", "a", "--expires-in-days", "-1"],
        [],
    ):
        assert headgate.run("keys", "create", *wrong).exit_code == 2, wrong
    assert headgate.json("keys", "list", "--json") == []


def test_teams_are_made_and_listed(headgate: Headgate) -> None:
    """A name with markup and SQL in it is shown as it is."""
    hostile = "[red]'; DROP TABLE teams;--[/red]"
    assert headgate.json("teams", "create", hostile, "--json") == {"name": hostile, "created": True}
    assert "already" in headgate.run("teams", "create", hostile).stdout
    (team,) = json.loads(headgate.run("teams", "list", "--json").stdout)
    assert (team["name"], team["keys"]) == (hostile, 0)
    assert hostile in headgate.run("teams", "list").stdout
