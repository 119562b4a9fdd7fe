"""The launchers `local` and `slurm`.

Hydra's doors to `dks/sweeps/launchers/local.py` and `dks/sweeps/launchers/slurm.py`.
"""
