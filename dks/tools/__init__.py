"""What is done beside training: a checkpoint tested, a network exported, this machine looked at."""
