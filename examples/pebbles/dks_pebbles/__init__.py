"""A backbone, a branch design, a matching strategy and a data set for dks, a file each."""
