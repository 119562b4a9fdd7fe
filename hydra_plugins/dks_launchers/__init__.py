"""The launchers `local` and `slurm`: Hydra's doors to `dks/sweeps/slots.py` and `dks/sweeps/slurm.py`."""
