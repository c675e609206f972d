"""Settings, names and the command line of a run. Imports no torch, so that errors come at once."""

import dataclasses

# simple-parsing 0.1.9 imports this name, which Python 3.15 no longer has.
if not hasattr(dataclasses, "_MISSING_TYPE"):
    setattr(dataclasses, "_MISSING_TYPE", type(dataclasses.MISSING))  # noqa: B010 (private to mypy)
