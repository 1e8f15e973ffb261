"""The machines that may be rented: a dated catalogue that users edit."""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.planner.errors import PlanError

GIB = 2**30


class Hardware(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device and what renting it costs; rates are the datasheet's, of one device.

    Raises:
        ValueError: a figure that no machine has, naming it.
    """

    name: str
    kind: Literal["gpu", "cpu"] = "gpu"
    memory_gib: float
    bandwidth_gb_s: float
    """Memory bandwidth, 1e9 bytes/s."""
    tflops: dict[str, float]
    """Dense 1e12 operations/s by the dtype that multiplies."""
    link_gb_s: float = 32.0
    """1e9 bytes/s that one device sends to its peers, one direction."""
    link_latency_us: float = 10.0
    """Of one all-reduce, however short."""
    devices_per_machine: int = 1
    """The most that tensor parallelism can use."""
    usd_per_hour: float
    """Of one device, on demand."""
    spot_usd_per_hour: float | None = None
    usd_per_month: float | None = None
    """Of one device, reserved for long; None: 730 hours on demand."""
    as_of: str = ""
    """When the prices were looked up."""

    def __post_init__(self) -> None:
        for name in ("memory_gib", "bandwidth_gb_s", "link_gb_s", "devices_per_machine"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; allowed: more than 0, such as the "
                    "datasheet's figure"
                )
        if not self.tflops or min(self.tflops.values()) <= 0:
            raise ValueError("tflops needs at least one dtype with more than 0")
        if self.usd_per_hour < 0:
            raise ValueError(f"usd_per_hour is {self.usd_per_hour}; allowed: 0 or more")

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB

    def flops(self, dtype: str) -> float:
        """Operations/s for that dtype; a dtype it has no units for runs at its widest rate."""
        return self.tflops.get(dtype, max(self.tflops.values())) * 1e12


def read_catalogue(path: Path | None = None) -> dict[str, Hardware]:
    """Hardware by name: the shipped list, with `path`'s entries added or in their place.

    Raises:
        PlanError: the file is missing, is no TOML, or says something impossible.
    """
    shipped = files("gateway.planner").joinpath("hardware.toml").read_text()
    found = _parse(shipped, "the shipped catalogue")
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: {error}") from None
        found |= _parse(text, str(path))
    return found


def pick(catalogue: Mapping[str, Hardware], asked: str) -> Hardware:
    """The device of that name, or the only one whose name begins so: A100, RTX 4090, CPU.

    Raises:
        PlanError: there is none, or more than one.
    """
    plain = asked.lower().replace(" ", "").replace("_", "-")
    if plain in catalogue:
        return catalogue[plain]
    names = [name for name in catalogue if name.replace("-", "").startswith(plain.replace("-", ""))]
    if len(names) != 1:
        raise PlanError(f"no hardware {asked!r}; there are: {', '.join(names or catalogue)}")
    return catalogue[names[0]]


def _parse(text: str, where: str) -> dict[str, Hardware]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{where}: {error}") from None
    entries = tables.pop("hardware", [])
    if tables or not isinstance(entries, list):
        odd = next(iter(tables), "hardware")
        raise PlanError(f"{where}: {odd!r} is none of its entries; each begins with [[hardware]]")
    found = {}
    for number, entry in enumerate(entries, 1):
        try:
            one = msgspec.convert(entry, Hardware)
        except msgspec.ValidationError as error:
            name = entry.get("name", number) if isinstance(entry, dict) else number
            raise PlanError(f"{where}: hardware {name!r}: {error}") from None
        found[one.name] = one
    return found
