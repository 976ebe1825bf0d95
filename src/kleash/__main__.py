"""`python -m kleash`."""

from kleash.cli import main

main()
