"""Read the STATE of earlier runs, and compute what a bookmark contains in addition to its time."""
