"""Which cells exist already and how they stand.

The launches on disk, what the scheduler says, and the state that follows.
"""
