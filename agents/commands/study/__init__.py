"""Studies: runs one after the other, then their table, figures and page."""
