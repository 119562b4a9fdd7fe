"""How long runs will take and what they need, told before they are launched.

Seen, probed or counted.
"""
