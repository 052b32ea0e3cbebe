"""A reward behind HTTP, in nothing but Python's own library; docs/reward-api.yaml describes it.

    GAVEL_REWARD_TOKEN=secret python examples/rewards/server.py 8900
    GAVEL_REWARD_TOKEN=secret gavel run CONFIG "reward.mix.polite={uses: 'http://127.0.0.1:8900/',
        weight: 0.1, call: {token_env: GAVEL_REWARD_TOKEN}}"

Beyond this machine it must be https, and its host one of reward.allowed_hosts.
"""

import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SPEC = {"name": "polite", "version": "1", "range": [0, 1], "max_batch": 128}
RUDE = ("stupid", "idiot", "nonsense")


def score(request):
    """1 for a judgment that calls nobody names."""
    return {"id": request["id"], "score": float(not any(w in request["response"] for w in RUDE))}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(lambda: SPEC)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(lambda: {"results": [score(request) for request in body["requests"]]})

    def _answer(self, make):
        expected = f"Bearer {os.environ['GAVEL_REWARD_TOKEN']}"
        allowed = hmac.compare_digest(self.headers.get("Authorization", ""), expected)
        data = json.dumps(make() if allowed else {"error": "wrong token"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


def serve(port):
    """A server on loopback; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    serve(int(sys.argv[1])).serve_forever()
