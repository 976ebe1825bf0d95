"""Calls with limits on time and memory, in a separate process."""
