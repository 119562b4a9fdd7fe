"""The sweeper that Hydra finds under the name `dks`."""
