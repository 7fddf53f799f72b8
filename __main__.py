"""``python -m driftway`` is the ``driftway`` command."""

from driftway.adapt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
