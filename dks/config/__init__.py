"""What a run is: choices, the typed configuration, its checks and its identity."""
