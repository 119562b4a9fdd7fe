"""Where cells run: in processes of this machine, or as jobs of SLURM."""
