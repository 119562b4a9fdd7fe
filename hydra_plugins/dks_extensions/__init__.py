"""What Hydra finds of extensions: their folders of config files, and choices that no file holds."""
