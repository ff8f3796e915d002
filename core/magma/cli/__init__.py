"""The `magma` program: it parses the command line, calls the library and prints.

One file per group of commands, each of them thin; `app.py` joins them into one program, and `console.py` draws what
a person sees while it runs.
"""


def main() -> None:
    """Entry point of the console script."""
    from .app import main as start

    start()
