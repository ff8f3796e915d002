"""Plugins: the two hooks, the registry of installed parts, and tools for plugin authors.

`hookspecs.py` has the hooks, `registry.py` finds a part by kind and name, `scaffold.py` writes a new package from
`templates/`, and `conformance/` has the checks of parts (public as `magma.testing`).
"""
