"""``python -m metta_ray`` is the command ``metta-ray``."""

from __future__ import annotations

from metta_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
