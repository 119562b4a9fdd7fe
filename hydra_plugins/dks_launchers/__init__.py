"""The launchers `local` and `slurm`.

Hydra's doors to `dks/sweeps/launchers/slots.py` and `dks/sweeps/launchers/slurm.py`.
"""
