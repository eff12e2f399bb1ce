"""`python -m stillmotion` is the command line."""

from stillmotion.cli.main import main

main()
