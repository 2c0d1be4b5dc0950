"""The options of a command, as its help must name them."""

from hydra import compose, initialize_config_module


def option_names(config: str) -> list[str]:
    """Return `name=` of every option of a config, those of the sampling one by one."""
    with initialize_config_module("var.configs", version_base="1.3"):
        options = compose(config)
    sampling = [f"sampling.{name}=" for name in options.sampling]
    return sampling + [f"{name}=" for name in options if name != "sampling"]
