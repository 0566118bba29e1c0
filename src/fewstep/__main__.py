"""python -m fewstep."""

from .cli import main

main()
