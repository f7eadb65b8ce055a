"""Sends what belongs to a beta to another upstream, and answers its health check by itself.

The names are those of wit/edge.wit in snake case. Bytes are bytes: a header's value need not be text.
"""

from wit_world import exports
from wit_world.imports import http, verdicts

calls = 0


class RequestHandler(exports.RequestHandler):
    def handle(self, request: http.RequestHead) -> verdicts.Verdict:
        # Always 1: each request gets the interpreter as its start left it.
        global calls
        calls += 1
        request.set("x-calls", str(calls).encode())

        if request.path() == "/health":
            print("asked whether it is well")  # A message of the log.
            headers = [http.Field("content-type", b"text/plain")]
            return verdicts.Verdict_Respond(verdicts.Response(200, headers, b"well\n"))
        if request.get("x-beta") == b"on":
            return verdicts.Verdict_Route(verdicts.Route("beta", None, None, None))
        return verdicts.Verdict_Next()
