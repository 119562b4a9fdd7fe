"""From overrides to cells, from cells to what is still to run, and to its launch."""
