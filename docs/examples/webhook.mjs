// A chat's backend over HTTP, in Node.js.
//
// The configuration of the nodes (unisono.toml); the secret is `whsec_` and the base64 of any 32 bytes or so:
//
//     [hooks]
//     url = "http://127.0.0.1:8000/"
//     secret = "whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg=="
//
//     [[rooms]]
//     pattern = "/chat-rooms/{id}"
//     client_events = "forward"    # what clients say comes here, and nowhere else
//     events = ["opened"]          # and so does the word that somebody came

import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { Webhook } from "standardwebhooks";

const port = Number(process.env.PORT ?? 8000);
const secret = process.env.WEBHOOK_SECRET ?? "whsec_dGhlIHNlY3JldCBvZiB0aGUgZXhhbXBsZXMsIDMyQg==";
const webhook = new Webhook(secret);

// Says in `actions` what the nodes are to do; what it returns is the answer to the client.
function handle({ type, event, room, socket, data }, actions) {
  if (type === "opened") {
    actions.push({ emit: { to: socket, event: "welcome", data: { text: `Welcome to ${room}` } } });
    return undefined;
  }
  if (type !== "message") return undefined;
  const said = { from: socket, text: data?.text };
  switch (event) {
    case "new message":
      actions.push({ publish: { room, event: "new message", data: said } });
      return { ack: { sent: true } };
    case "private message":
      actions.push({ emit: { to: data?.to, event: "private message", data: said } });
      return { ack: { sent: true } };
    default:
      return { error: `there is no event '${event}'` };
  }
}

const server = createServer(async (request, response) => {
  let events;
  try {
    const body = await text(request);
    // Over the body as it came, byte for byte.
    ({ events } = webhook.verify(body, request.headers));
  } catch {
    response.writeHead(401).end();
    return;
  }
  const answers = {};
  const actions = [];
  for (const event of events) {
    try {
      const answer = handle(event, actions);
      if (answer) answers[event.id] = answer;
    } catch (error) {
      // An answer all the same: the nodes would send a request that failed again and again.
      console.log("failed:", error);
      answers[event.id] = { error: "the backend failed" };
    }
  }
  response.writeHead(200, { "content-type": "application/json" });
  response.end(JSON.stringify({ answers, actions }));
});

server.listen(port, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${port}/`));
