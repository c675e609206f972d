"""What a run is: settings, names, command line. Imports no torch, so that errors answer at once."""
