"""Which parts are installed, and who brought them."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from . import hookspecs
from .errors import PluginError, did_you_mean
from .interfaces import KINDS, Part


@dataclass(frozen=True)
class Plugin:
    """One entry point: where it comes from and, where it is broken, why."""

    name: str
    distribution: str
    version: str
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Entry:
    """One part with its provenance."""

    kind: str
    name: str
    part: type[Part]
    plugin: Plugin


class Registry:
    """Looks parts up by kind and name. A broken plugin disables only itself."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self.plugins: list[Plugin] = []
        self._entries: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for point in sorted(points, key=lambda point: (point.name, point.value)):
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        plugin = Plugin(point.name, *_origin(point))
        manager = pluggy.PluginManager("magma")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(point.load())
            found = [part for parts in manager.hook.magma_parts() for part in parts]
            entries = [Entry(_kind_of(part), part.name, part, plugin) for part in found]
        except Exception as error:  # whatever a stranger's module does, it does to itself alone
            cause = f"{type(error).__name__}: {error}"
            self.plugins.append(Plugin(plugin.name, plugin.distribution, plugin.version, cause))
            return
        self.plugins.append(plugin)
        for entry in entries:
            self._entries[entry.kind, entry.name].append(entry)

    def entries(self) -> list[Entry]:
        """Every part, by kind and name."""
        return [entry for key in sorted(self._entries) for entry in self._entries[key]]

    def find(self, kind: str, name: str) -> Entry:
        """The part, or a `PluginError` that says what is installed."""
        found = self._entries.get((kind, name), [])
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(str(entry.plugin) for entry in found)
            raise PluginError(f'{kind} "{name}" is brought by {owners}: uninstall one')
        known = {entry.name: entry for entry in self.entries() if entry.kind == kind}
        installed = ", ".join(f"{entry.name} ({entry.plugin})" for entry in known.values()) or "none"
        broken = "".join(f"\n    broken: {p} ({p.name}): {p.problem}" for p in self.plugins if p.problem)
        what = "data source" if kind == "data" else kind
        raise PluginError(f'no {what} is called "{name}".{did_you_mean(name, known)} Installed: {installed}.{broken}')


@functools.cache
def installed() -> Registry:
    """The registry of this environment, made at the first lookup."""
    return Registry(entry_points(group=hookspecs.PARTS_GROUP))


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "0")


def _kind_of(part: type[Part]) -> str:
    if not (inspect.isclass(part) and issubclass(part, Part)):
        raise TypeError(
            f"magma_parts gave {part!r}, which is not a subclass of {', '.join(k.__name__ for k in KINDS.values())}"
        )
    if inspect.isabstract(part):
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        raise TypeError(f"{part.__name__} is abstract: it lacks {missing}")
    kind = next((kind for kind, base in KINDS.items() if issubclass(part, base)), None)
    if kind is None:
        raise TypeError(f"{part.__name__} is none of {', '.join(k.__name__ for k in KINDS.values())}")
    if not isinstance(getattr(part, "name", None), str):
        raise TypeError(f"{part.__name__} has no `name`")
    return kind
