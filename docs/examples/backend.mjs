// A chat's backend over NATS, in Node.js.
//
// The configuration of the nodes (unisono.toml):
//
//     [cluster]
//     nats = ["nats://127.0.0.1:4222"]
//
//     [[rooms]]
//     pattern = "/chat-rooms/{id}"
//     client_events = "forward"    # what clients say comes here, and nowhere else
//     events = ["opened"]          # and so does the word that somebody came

import { connect } from "@nats-io/transport-node";

const servers = process.env.NATS_URL ?? "nats://127.0.0.1:4222";
const bus = await connect({ servers });

// Asks the nodes to do something; whichever of them is free does it.
async function api(verb, body) {
  const reply = await bus.request(`unisono.api.${verb}`, JSON.stringify(body));
  return reply.json();
}

// Sends to one client. The status says what became of it.
async function emit(to, event, data) {
  const answer = await api("emit", { to, event, data });
  return answer.results[to];
}

// Sends to everybody in a room, on all nodes.
const publish = (room, event, data) => api("publish", { room, event, data });

// A client has come to one of the rooms.
async function onOpened({ socket, room }) {
  await emit(socket, "welcome", { text: `Welcome to ${room}` });
}

// A client has sent something. What is returned is its ack.
async function onMessage({ event, room, socket, data }) {
  const said = { from: socket, text: data?.text };
  switch (event) {
    case "new message":
      await publish(room, "new message", said);
      return { sent: true };
    case "private message":
      return { sent: (await emit(data.to, "private message", said)) === "delivered" };
    default:
      return { error: `there is no event '${event}'` };
  }
}

async function serve(subject, handle) {
  // A queue group: of all copies of this program that run, each event goes to one.
  for await (const message of bus.subscribe(subject, { queue: "chat" })) {
    let answer;
    try {
      answer = await handle(message.json());
    } catch (error) {
      console.error("failed:", error);
      answer = { error: "the backend failed" };
    }
    // Only an event that the client gave an id waits for an answer.
    if (message.reply) message.respond(JSON.stringify(answer));
  }
}

serve("unisono.event.opened", onOpened);
serve("unisono.event.message", onMessage);
await bus.flush();
console.log("listening on", servers);
