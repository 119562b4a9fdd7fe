"""Where cells run: in processes of this machine, or as jobs of SLURM."""

# The launchers of this package: the choice of hydra/launcher, and the dataclass of its options as
# "module:class". Each has a module of its own in `hydra_plugins/dks_launchers/`, which Hydra finds.
LAUNCHERS = {
    "local": "hydra_plugins.dks_launchers.local:LocalOptions",
    "slurm": "dks.sweeps.launchers.slurm:Resources",
}
