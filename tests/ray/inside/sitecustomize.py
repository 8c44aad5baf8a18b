"""Python loads this in every process of a run under test, since its directory is on their PYTHONPATH."""

import os

if os.environ.get("ORACLE_ROOT"):
    import oracle

    oracle.install()
