"""What a judgment is worth: the reward protocol, typed outcomes and the built-in rewards."""
