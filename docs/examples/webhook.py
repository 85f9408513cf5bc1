"""A chat's backend over HTTP, in Python.

The configuration of the nodes (unisono.toml); the secret is `whsec_` and the base64 of any 32 bytes or so:

    [hooks]
    url = "http://127.0.0.1:8000/"
    secret = "whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg=="

    [[rooms]]
    pattern = "/chat-rooms/{id}"
    client_events = "forward"    # what clients say comes here, and nowhere else
    events = ["opened"]          # and so does the word that somebody came
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

PORT = int(os.environ.get("PORT", "8000"))
SECRET = os.environ.get("WEBHOOK_SECRET", "whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg==")


def handle(event, actions):
    """Says in `actions` what the nodes are to do; what it returns is the answer to the client."""
    if event["type"] == "opened":
        welcome = {"text": f"Welcome to {event['room']}"}
        actions.append({"emit": {"to": event["socket"], "event": "welcome", "data": welcome}})
        return None
    if event["type"] != "message":
        return None
    data = event.get("data") or {}
    said = {"from": event["socket"], "text": data.get("text")}
    if event["event"] == "new message":
        publish = {"room": event["room"], "event": "new message", "data": said}
        actions.append({"publish": publish})
        return {"ack": {"sent": True}}
    if event["event"] == "private message":
        emit = {"to": data.get("to"), "event": "private message", "data": said}
        actions.append({"emit": emit})
        return {"ack": {"sent": True}}
    return {"error": f"there is no event {event['event']!r}"}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            # Over the body as it came, byte for byte.
            request = Webhook(SECRET).verify(body, dict(self.headers))
        except WebhookVerificationError:
            self.send_error(401)
            return
        answers, actions = {}, []
        for event in request["events"]:
            try:
                answer = handle(event, actions)
            except Exception as error:
                # An answer all the same: the nodes would send a request that failed again and again.
                print("failed:", repr(error), flush=True)
                answer = {"error": "the backend failed"}
            if answer is not None:
                answers[event["id"]] = answer
        body = json.dumps({"answers": answers, "actions": actions}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
print(f"listening on http://127.0.0.1:{PORT}/", flush=True)
server.serve_forever()
