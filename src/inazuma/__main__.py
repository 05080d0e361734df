"""`python -m inazuma`: the command `inazuma`."""

from inazuma.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
