"""What a run is: settings, names and the command line. Imports no torch, so errors answer at once."""
