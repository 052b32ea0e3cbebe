"""Thin Ray shells around judging, rewards and learning, and the weight transport between them."""
