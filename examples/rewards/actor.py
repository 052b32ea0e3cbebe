"""A reward as a Ray actor of your own, in this job or another. It needs nothing of Gavel.

    RAY_ADDRESS=... python examples/rewards/actor.py      # stays until Ctrl-C
    gavel run CONFIG "reward.mix.asks={uses: ray://team/asks, weight: 0.1}"

The actor is given dicts, because its `spec` answers a dict; answer a `RewardSpec` to be given
`RewardRequest`s. Make it asynchronous or give it threads if it waits for others.
"""

import signal

import ray


@ray.remote
class AsksTheQuestion:
    """1 where the evaluation names a word of the client's last message."""

    def spec(self):
        return {"name": "asks", "version": "1", "range": [0, 1], "max_batch": 256}

    def score(self, batch):
        return [{"id": request["id"], "score": self._score(request)} for request in batch]

    def _score(self, request):
        asked = {word for word in request["conversation"][-1]["content"].split() if len(word) > 4}
        return float(any(word in request["response"] for word in asked))


if __name__ == "__main__":
    ray.init(namespace="team")
    actor = AsksTheQuestion.options(name="asks", max_restarts=-1).remote()
    print(ray.get(actor.spec.remote()), flush=True)
    signal.pause()
