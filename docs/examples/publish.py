"""Publishes to a room over HTTP, by the first of several nodes that takes it, in Python.

    NODES=http://127.0.0.1:8081,http://127.0.0.1:8082 API_KEY=... python publish.py ROOM EVENT DATA

Behind a load balancer that does the same, as nginx/unisono.conf does, one address is enough.
"""

import http.client
import json
import os
import sys
from urllib.parse import urlsplit

NODES = os.environ.get("NODES", "http://127.0.0.1:8080").split(",")
API_KEY = os.environ.get("API_KEY", "")


def publish(room, event, data):
    """Returns the answer of the node that took it."""
    body = json.dumps({"room": room, "event": event, "data": data})
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    for node in map(urlsplit, NODES):
        secure = node.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(node.netloc, timeout=10)
        try:
            connection.connect()
        except OSError:
            continue  # nothing was sent
        # From here on an error may come after the publication: to try again could publish it twice.
        connection.request("POST", "/api/v1/publish", body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status == 503:
            continue  # the node did nothing: it is about to stop, or has too much to do
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text}")
        return json.loads(text)
    raise RuntimeError("no node takes it")


room, event, data = sys.argv[1:]
print(publish(room, event, json.loads(data))["status"])
