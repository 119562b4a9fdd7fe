"""What a run leaves behind: its record and journal on disk, and MLflow as a sink of them."""
