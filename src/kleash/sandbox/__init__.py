"""Calls with limits on time and memory, in a process of their own."""
