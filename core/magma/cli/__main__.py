"""`python -m magma.cli`: what a launcher starts."""

from . import main

if __name__ == "__main__":
    main()
