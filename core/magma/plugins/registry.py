"""The installed parts and their distributions."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from ..errors import PluginError, did_you_mean
from ..interfaces import KINDS, Part
from . import hookspecs


@dataclass(frozen=True)
class Plugin:
    """One entry point: its distribution, and why it cannot be imported."""

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
    """Finds parts by kind and name. A plugin that fails disables only itself."""

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
            module = point.load()
            _check_version(getattr(module, "MAGMA_API", hookspecs.API_VERSION))
            manager.register(module)
            found = [part for parts in manager.hook.magma_parts() for part in parts]
            entries = [Entry(_kind_of(part), part.name, part, plugin) for part in found]
        except (Exception, SystemExit) as error:  # errors of a plugin's module disable only that plugin
            cause = f"{type(error).__name__}: {error}"
            self.plugins.append(Plugin(plugin.name, plugin.distribution, plugin.version, cause))
            return
        self.plugins.append(plugin)
        for entry in entries:
            self._entries[entry.kind, entry.name].append(entry)

    def entries(self) -> list[Entry]:
        """Every part, by kind and name."""
        return [entry for key in sorted(self._entries) for entry in self._entries[key]]

    def status(self, entry: Entry) -> str:
        """ "ok", or which other distribution has a part of this kind and name: neither can be used then."""
        others = [str(other.plugin) for other in self._entries[entry.kind, entry.name] if other is not entry]
        return f"clash: also provided by {' and '.join(others)}" if others else "ok"

    def find_all(self, name: str) -> list[Entry]:
        """The parts of this name, or else those of the plugin or distribution of this name.

        Raises `PluginError` if there are none, or the plugin is broken.
        """
        found = [entry for entry in self.entries() if entry.name == name]
        if not found:
            for plugin in self.plugins:
                if plugin.problem and name in (plugin.name, plugin.distribution):
                    raise PluginError(f"{plugin} ({plugin.name}) is broken: {plugin.problem}")
            found = [e for e in self.entries() if name in (e.plugin.name, e.plugin.distribution)]
        if not found:
            known = [e.name for e in self.entries()] + [p.name for p in self.plugins]
            hint = did_you_mean(name, known) or " `magma plugin list` lists what is installed."
            raise PluginError(f'no part and no plugin is called "{name}".{hint}{self._broken()}')
        return found

    def _broken(self) -> str:
        return "".join(f"\n    broken: {p} ({p.name}): {p.problem}" for p in self.plugins if p.problem)

    def find(self, kind: str, name: str) -> Entry:
        """Find a part. Raises `PluginError` if it is not installed, or installed twice."""
        found = self._entries.get((kind, name), [])
        if len(found) == 1:
            return found[0]
        if found:
            owners = " and ".join(str(entry.plugin) for entry in found)
            raise PluginError(f'{kind} "{name}" is provided by {owners}: uninstall one')
        known = {entry.name: entry for entry in self.entries() if entry.kind == kind}
        installed = ", ".join(f"{entry.name} ({entry.plugin})" for entry in known.values()) or "none"
        what = "data source" if kind == "data" else kind
        hint = did_you_mean(name, known)
        raise PluginError(f'no {what} is called "{name}".{hint} Installed: {installed}.{self._broken()}')


@functools.cache
def installed() -> Registry:
    """The registry of this environment. It is built at the first call."""
    return Registry(entry_points(group=hookspecs.PARTS_GROUP))


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "0")


def _check_version(stated: object) -> None:
    if not isinstance(stated, int):
        raise TypeError(f"MAGMA_API is {stated!r}; allowed: a whole number")
    if stated > hookspecs.API_VERSION:
        raise PluginError(
            f"it needs version {stated} of the plugin API, this MAGMA has {hookspecs.API_VERSION}: upgrade magma"
        )


def _kind_of(part: type[Part]) -> str:
    if not (inspect.isclass(part) and issubclass(part, Part)):
        raise TypeError(
            f"magma_parts gave {part!r}, which is not a subclass of {', '.join(k.__name__ for k in KINDS.values())}"
        )
    if inspect.isabstract(part):
        missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
        raise TypeError(f"{part.__name__} is abstract: it does not define {missing}")
    kind = next((kind for kind, base in KINDS.items() if issubclass(part, base)), None)
    if kind is None:
        raise TypeError(f"{part.__name__} is none of {', '.join(k.__name__ for k in KINDS.values())}")
    if not isinstance(getattr(part, "name", None), str):
        raise TypeError(f"{part.__name__} has no `name`")
    return kind
