"""How well a judge judges: both-order accuracy, consistency and position bias."""
