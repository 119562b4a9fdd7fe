"""How long cells will take and what they need, told before they are launched."""
