"""`headgate pin` and `unpin`, without a running gateway."""

from tests.gateway.cli.conftest import Headgate


def test_unpin_ends_what_is_pinned(headgate: Headgate) -> None:
    """A flag ends one pin, no flag whatever is left; what is not there is an error."""
    headgate.run("pin", "--backend", "small", "--for", "1h")
    headgate.run("pin", "--policy", "cheapest", "--for", "1h")
    assert headgate.json("unpin", "--policy", "--json")["slot"] == "pin.policy"
    headgate.run("pin", "--policy", "cheapest", "--for", "1h")
    ended = headgate.run("unpin").stdout
    assert "the policy is unpinned" in ended
    assert "the backend is unpinned" in ended
    assert headgate.json("overrides", "--json") == []
    again = headgate.run("unpin")
    assert (again.exit_code, "nothing is pinned" in again.output) == (1, True)
