"""One file per picture or readout."""
