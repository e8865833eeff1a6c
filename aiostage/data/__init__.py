"""Pure functions on numpy arrays and numbers: nothing here knows of a GPU, a loop or a thread."""
