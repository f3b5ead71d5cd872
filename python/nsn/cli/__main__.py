"""``python -m nsn.cli``."""

from nsn.cli import main

main()
