"""All that happens off the loop: copying, submitting, polling."""
