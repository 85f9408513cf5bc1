// Publishes to a room over HTTP, by the first of several nodes that takes it, in Node.js.
//
//     NODES=http://127.0.0.1:8081,http://127.0.0.1:8082 API_KEY=... node publish.mjs ROOM EVENT DATA
//
// Behind a load balancer that does the same, as nginx/unisono.conf does, one address is enough.

const nodes = (process.env.NODES ?? "http://127.0.0.1:8080").split(",");
const headers = {
  authorization: `Bearer ${process.env.API_KEY ?? ""}`,
  "content-type": "application/json",
};

// Errors of a connection that was never made: nothing was sent.
const UNSENT = ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENOTFOUND", "UND_ERR_CONNECT_TIMEOUT"];

// Returns the answer of the node that took it.
async function publish(room, event, data) {
  const body = JSON.stringify({ room, event, data });
  for (const node of nodes) {
    let answer;
    try {
      answer = await fetch(`${node}/api/v1/publish`, { method: "POST", headers, body });
    } catch (error) {
      if (UNSENT.includes(error.cause?.code)) continue;
      // It may come after the publication: to try again could publish it twice.
      throw error;
    }
    const text = await answer.text();
    // The node did nothing: it is about to stop, or has too much to do.
    if (answer.status === 503) continue;
    if (!answer.ok) throw new Error(`${answer.status}: ${text}`);
    return JSON.parse(text);
  }
  throw new Error("no node takes it");
}

const [room, event, data] = process.argv.slice(2);
console.log((await publish(room, event, JSON.parse(data))).status);
