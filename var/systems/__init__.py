"""Published systems: how their configurations and state dicts become our pieces."""
