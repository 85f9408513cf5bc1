"""Publishers and members around nodes that are restarted, with libraries that are not Unisono's: `urllib` and
`http.client` publish, `websockets` listens.

Says `ready` when everybody has begun. On SIGTERM the publishers stop, and it prints a report in JSON, once every member has
heard a last word from each node.

    NGINX=port NODES=port,port,port KEY=key crowd.py
"""

import asyncio
import collections
import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import websockets

NGINX = int(os.environ["NGINX"])
NODES = [int(port) for port in os.environ["NODES"].split(",")]
KEY = os.environ["KEY"]
ROOM = "/crowd"
MEMBERS = 24
PACE = 0.005
PATIENCE = 60
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

stop = threading.Event()
# Of each publisher: what was answered how often, and the numbers that were taken, by the node that was asked.
answers = collections.defaultdict(collections.Counter)
taken = collections.defaultdict(list)
problems = []
gaps = []


def body(name, number):
    # Every fourth wants to know how far it went.
    confirm = number % 4 == 0
    return json.dumps({"room": ROOM, "event": "n", "data": [name, number], "confirm": confirm}).encode()


def note(name, number, status, text, retry_after):
    """Writes down an answer, in a word."""
    try:
        answer = json.loads(text)
        word = answer.get("status") or answer["error"]["code"]
    except (ValueError, KeyError, AttributeError):
        word = "not JSON"
    if status == 503 and retry_after is None:
        word += ", no Retry-After"
    answers[name][f"{status} {word}"] += 1
    if status == 200:
        taken[name].append(number)


def publish_by_urllib(name, port):
    """A connection for each request."""
    for number in range(10**9):
        if stop.is_set():
            return
        url = f"http://127.0.0.1:{port}/api/v1/publish"
        request = urllib.request.Request(url, body(name, number), HEADERS)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                note(name, number, answer.status, answer.read(), None)
        except urllib.error.HTTPError as error:
            note(name, number, error.code, error.read(), error.headers["Retry-After"])
        except urllib.error.URLError as error:
            answers[name][type(error.reason).__name__] += 1
        except OSError as error:
            answers[name][type(error).__name__] += 1
        time.sleep(PACE)


def publish_kept(name, port):
    """Requests over one connection, for as long as that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for number in range(10**9):
        if stop.is_set():
            return
        try:
            connection.request("POST", "/api/v1/publish", body(name, number), HEADERS)
            answer = connection.getresponse()
            note(name, number, answer.status, answer.read(), answer.headers["Retry-After"])
        except (OSError, http.client.HTTPException) as error:
            answers[name][type(error).__name__] += 1
            connection.close()
        time.sleep(PACE)


class Member:
    """A client that comes back after the time that it was told."""

    def __init__(self, name):
        self.name = name
        self.open = asyncio.Event()
        self.fences = 0
        self.all_fences = asyncio.Event()
        # Of each connection: what was heard of each publisher.
        self.connections = []

    async def run(self):
        while True:
            wait = 0
            try:
                async with websockets.connect(f"ws://127.0.0.1:{NGINX}{ROOM}") as socket:
                    heard = collections.defaultdict(list)
                    self.connections.append(heard)
                    async for text in socket:
                        wait = self.hear(json.loads(text), heard) or wait
            except websockets.ConnectionClosed as closed:
                if closed.rcvd is None or closed.rcvd.code != 1012:
                    problems.append(f"{self.name}: closed: {closed}")
            except (OSError, websockets.WebSocketException) as error:
                problems.append(f"{self.name}: not let in: {error!r}")
            await asyncio.sleep(wait)

    def hear(self, message, heard):
        event, data = message["event"], message.get("data")
        if event == "unisono:open":
            self.open.set()
        elif event == "unisono:gap":
            gaps.append(f"{self.name}: {data}")
        elif event == "unisono:closing":
            return data["reconnect_in_ms"] / 1000
        elif event == "n":
            heard[data[0]].append(data[1])
        elif event == "fence":
            self.fences += 1
            if self.fences == len(NODES):
                self.all_fences.set()
        return None


def check(member, ordered):
    """What was taken while a connection was there has come over it once, and in its order where one node took all."""
    for nth, heard in enumerate(member.connections):
        for name, numbers in heard.items():
            seen = set(numbers)
            where = f"{member.name}, connection {nth}, {name}"
            if len(seen) != len(numbers):
                problems.append(f"{where}: twice")
            if name in ordered and numbers != sorted(numbers):
                problems.append(f"{where}: out of order")
            first, last = min(numbers), max(numbers)
            # The last connection heard the last words of each node.
            if nth == len(member.connections) - 1:
                last = max(taken[name], default=last)
            lost = [n for n in taken[name] if first <= n <= last and n not in seen]
            if lost:
                problems.append(f"{where}: lost {lost[:20]}")


async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    members = [Member(f"member {n}") for n in range(MEMBERS)]
    running = [asyncio.create_task(member.run()) for member in members]
    for member in members:
        await asyncio.wait_for(member.open.wait(), PATIENCE)
    sources = [("nginx", publish_by_urllib, NGINX), ("nginx, kept", publish_kept, NGINX)]
    for nth, port in enumerate(NODES):
        sources.append((f"node {nth}", publish_by_urllib, port))
        sources.append((f"node {nth}, kept", publish_kept, port))
    threads = [threading.Thread(target=run, args=(name, port)) for name, run, port in sources]
    for thread in threads:
        thread.start()
    while any(not taken[name] for name, _, _ in sources):
        await asyncio.sleep(PACE)
    print("ready", flush=True)

    await ended.wait()
    stop.set()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    for port in NODES:
        fence = json.dumps({"room": ROOM, "event": "fence"}).encode()
        url = f"http://127.0.0.1:{port}/api/v1/publish"
        request = urllib.request.Request(url, fence, HEADERS)
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=PATIENCE).read())
    for member in members:
        try:
            await asyncio.wait_for(member.all_fences.wait(), PATIENCE)
        except asyncio.TimeoutError:
            problems.append(f"{member.name}: has not heard the last words")
    for task in running:
        task.cancel()
    ordered = {name for name, _, port in sources if port != NGINX}
    for member in members:
        check(member, ordered)
    connections = sum(len(member.connections) for member in members)
    print(json.dumps({"answers": answers, "gaps": gaps, "problems": problems, "connections": connections}))


asyncio.run(main())
