"""Pure functions on numpy and numbers: what the data that users give becomes."""
