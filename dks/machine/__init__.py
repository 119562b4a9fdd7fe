"""What a process knows of the machine it is on.

Cores, memory, its limits, its signals, and the processes beside it.
"""
