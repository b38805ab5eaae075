"""`python -m cli`."""

from __future__ import annotations

try:
    from cli.app import app

    app(prog_name="python -m cli")
except KeyboardInterrupt:  # while modules are imported; later typer sees to it
    raise SystemExit(130) from None
