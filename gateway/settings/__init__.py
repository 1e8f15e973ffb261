"""headgate.toml: its tables as frozen structs, read by `load`, judged by `check`."""

from gateway.settings.checks import check, shown_url
from gateway.settings.json_schema import schema
from gateway.settings.loading import load
from gateway.settings.prices import MachineSettings, PriceSettings
from gateway.settings.reports import ReportSettings
from gateway.settings.tables import (
    BUILT_IN,
    BackendSettings,
    BatchSettings,
    CacheSettings,
    DatabaseSettings,
    EngineSettings,
    ExactSettings,
    LimitSettings,
    RoutingSettings,
    SemanticSettings,
    ServerSettings,
    Settings,
    SpeculationSettings,
)

__all__ = [
    "BUILT_IN",
    "BackendSettings",
    "BatchSettings",
    "CacheSettings",
    "DatabaseSettings",
    "EngineSettings",
    "ExactSettings",
    "LimitSettings",
    "MachineSettings",
    "PriceSettings",
    "ReportSettings",
    "RoutingSettings",
    "SemanticSettings",
    "ServerSettings",
    "Settings",
    "SpeculationSettings",
    "check",
    "load",
    "schema",
    "shown_url",
]
