"""`magma plugin`: list, create and check plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PluginError

plugins = typer.Typer(help="List, create and check plugins.", no_args_is_help=True)


@plugins.command("list")
def plugin_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every installed part with its distribution, and plugins that cannot be imported."""
    from ..plugins.registry import installed

    registry = installed()
    broken = [plugin for plugin in registry.plugins if plugin.problem]
    if as_json:
        listing: dict[str, Any] = {
            "parts": [
                {
                    "kind": e.kind,
                    "name": e.name,
                    "distribution": e.plugin.distribution,
                    "version": e.plugin.version,
                    "status": registry.status(e),
                }
                for e in registry.entries()
            ],
            "broken": [
                {"plugin": p.name, "distribution": p.distribution, "version": p.version, "problem": p.problem}
                for p in broken
            ],
        }
        typer.echo(json.dumps(listing, indent=1))
        return
    rows = [("kind", "name", "distribution", "version", "status")]
    rows += [(e.kind, e.name, e.plugin.distribution, e.plugin.version, registry.status(e)) for e in registry.entries()]
    rows += [("-", p.name, p.distribution, p.version, f"broken: {p.problem}") for p in broken]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))


@plugins.command("new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="Name of the part in recipes.")],
    kind: Annotated[str, typer.Option(help="encoder, prefix, adapter, lm, head, data or task.")],
    out: Annotated[Path, typer.Option(help="Folder in which magma-NAME is created.")] = Path(),
    at: Annotated[str, typer.Option(help="Where an adapter acts: sublayer, block or linears.")] = "sublayer",
) -> None:
    """Create a package with one working part and its tests."""
    from ..plugins.scaffold import new_plugin

    folder = new_plugin(name, kind, out, at)
    for file in sorted(folder.iterdir()):
        typer.echo(file)
    typer.echo(f"next: pip install -e '{folder}[test]', then: magma plugin check {name}")


@plugins.command("check")
def plugin_check(
    name: Annotated[str, typer.Argument(help="A part, or a plugin or distribution: all its parts are checked.")],
    kind: Annotated[str | None, typer.Option(help="Only parts of this kind, if several have the name.")] = None,
) -> None:
    """Run the conformance checks on installed parts. Exit status 1 if a check fails."""
    from ..plugins.registry import installed

    found = [entry for entry in installed().find_all(name) if kind in (None, entry.kind)]
    if not found:
        raise PluginError(f'plugin check: "{name}" has no part of the kind "{kind}"')
    from ..plugins.conformance.run import run_checks

    faults = 0
    for entry in found:
        findings = run_checks(entry.part)
        broken = [one for one in findings if one.problem]
        faults += len(broken)
        passed = f"{len(findings) - len(broken)} of {len(findings)} checks passed"
        typer.echo(f"{entry.kind} {entry.name} ({entry.plugin}): {passed}")
        for one in findings:
            typer.echo(f"  {'FAULT' if one.problem else 'ok   '} {one.check}: {one.problem or one.promise}")
    if faults:
        raise typer.Exit(1)
