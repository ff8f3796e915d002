"""Plugins: the two hooks, the registry of installed parts, and tools for plugin authors.

`hookspecs.py` has the hooks, `registry.py` finds a part by kind and name, `part_of.py` has parts in the configs of
other parts, `scaffold.py` writes a new package from `templates/`, and `conformance/` has the checks of parts (public as
`magma.testing`).
"""
