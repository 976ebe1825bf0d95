"""Python reads this at start where PYTHONPATH leads here, so that the commands that tests run are watched as well."""

import network_guard  # noqa: F401
