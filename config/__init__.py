"""Settings, names and the command line of a run. Imports no torch, so that errors come at once."""
