"""How parts get in: the two hooks of a plugin, the registry of what is installed, and tools for plugin authors.

`hookspecs.py` has the hooks, `registry.py` finds a part by kind and name, `scaffold.py` writes a new package from
`templates/`, and `conformance/` checks what a part promises (public as `magma.testing`).
"""
