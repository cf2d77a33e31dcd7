"""The configs of every command; a module, so that Hydra finds them in an installed package."""
