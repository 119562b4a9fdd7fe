"""What a network is trained towards: the loss terms, their sum, and the teachers."""
