"""What adapters of linear layers have in common."""

from __future__ import annotations

from magma import PartError, Site


def require_linear(name: str, site: Site) -> None:
    """Raise `PartError` if the site is not one linear layer. `name` is that of the adapter."""
    if site.linear is None:
        raise PartError(
            f'"{name}": given the site {site.path}; allowed: linear layers, such as at = "linears" or the path of one'
        )
