"""`dks doctor`: what is installed, reachable and missing, and what to do about it."""
