"""What an installation has, as `setup.cfg` declares it."""

import configparser
from pathlib import Path


def commands() -> dict[str, str]:
    """Return the installed commands, and where each begins: `module:function`."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): place.strip() for name, place in (line.split("=") for line in lines)}
