"""kleash: learning from feedback, and where it went wrong."""

__version__ = "0.1.0"
