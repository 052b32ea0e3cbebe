"""In which order the judge sees the two answers.

Orders depend on a pair's uid and a seed only, never on the pair's place in a file or on what was
drawn before it, so that a run that is resumed or sharded shows every pair as before.
"""

from __future__ import annotations

import hashlib

from judging.records import Order, PreferencePair, Presentation


def balanced_order(pair_uid: str, seed: int) -> Order:
    """A fair coin for this pair under this seed."""
    digest = hashlib.sha256(f"{seed}/{pair_uid}".encode("utf-8", "surrogatepass")).digest()
    return "chosen_first" if digest[0] & 1 else "rejected_first"


def both_orders(pair: PreferencePair) -> tuple[Presentation, Presentation]:
    """The pair with its chosen answer first and with its rejected answer first."""
    return Presentation(pair, "chosen_first"), Presentation(pair, "rejected_first")
