"""A chat's backend over NATS, in Python.

The configuration of the nodes (unisono.toml):

    [cluster]
    nats = ["nats://127.0.0.1:4222"]

    [[rooms]]
    pattern = "/chat-rooms/{id}"
    client_events = "forward"    # what clients say comes here, and nowhere else
    events = ["opened"]          # and so does the word that somebody came
"""

import asyncio
import json
import os

import nats

NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")


async def main():
    bus = await nats.connect(NATS_URL)

    async def api(verb, body):
        """Asks the nodes to do something; whichever of them is free does it."""
        reply = await bus.request(f"unisono.api.{verb}", json.dumps(body).encode())
        return json.loads(reply.data)

    async def emit(to, event, data):
        """Sends to one client. The status says what became of it."""
        answer = await api("emit", {"to": to, "event": event, "data": data})
        return answer["results"][to]

    async def publish(room, event, data):
        """Sends to everybody in a room, on all nodes."""
        await api("publish", {"room": room, "event": event, "data": data})

    async def on_opened(event):
        """A client has come to one of the rooms."""
        await emit(event["socket"], "welcome", {"text": f"Welcome to {event['room']}"})

    async def on_message(event):
        """A client has sent something. What is returned is its ack."""
        data = event.get("data") or {}
        said = {"from": event["socket"], "text": data.get("text")}
        if event["event"] == "new message":
            await publish(event["room"], "new message", said)
            return {"sent": True}
        if event["event"] == "private message":
            status = await emit(data["to"], "private message", said)
            return {"sent": status == "delivered"}
        return {"error": f"there is no event {event['event']!r}"}

    def handler(handle):
        async def on(message):
            try:
                answer = await handle(json.loads(message.data))
            except Exception as error:
                print("failed:", repr(error), flush=True)
                answer = {"error": "the backend failed"}
            # Only an event that the client gave an id waits for an answer.
            if message.reply:
                await message.respond(json.dumps(answer).encode())

        return on

    # A queue group: of all copies of this program that run, each event goes to one.
    await bus.subscribe("unisono.event.opened", queue="chat", cb=handler(on_opened))
    await bus.subscribe("unisono.event.message", queue="chat", cb=handler(on_message))
    await bus.flush()
    print("listening on", NATS_URL, flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
