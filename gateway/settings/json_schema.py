"""The JSON Schema of headgate.toml."""

from typing import Any

import msgspec

from gateway.settings.tables import Settings


def schema() -> dict[str, Any]:
    """The JSON Schema of headgate.toml, for editors and checks elsewhere."""
    document = msgspec.json.schema(Settings)
    settings = document["$defs"]["Settings"]["properties"]
    for filled_in_by_load in ("state_dir", "source"):
        del settings[filled_in_by_load]
    return _money_as_numbers(document)  # type: ignore[no-any-return]


def _money_as_numbers(node: Any) -> Any:
    """TOML has numbers where JSON carries decimals as strings; both are read."""
    if isinstance(node, list):
        return [_money_as_numbers(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "decimal":
        return {**node, "type": ["number", "string"]}
    return {key: _money_as_numbers(value) for key, value in node.items()}
