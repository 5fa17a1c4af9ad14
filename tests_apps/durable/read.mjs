// Read a stream with the client of the protocol, and write what arrives as lines of JSON: node read.mjs URL LIVE
import { stream } from "@durable-streams/client";

const [url, live] = process.argv.slice(2);
const tell = (value) => console.log(JSON.stringify(value));
try {
  const response = await stream({ url, live: live === "false" ? false : live, warnOnHttp: false });
  response.subscribeJson((batch) => {
    tell({ items: batch.items, offset: batch.offset });
  });
  await response.closed;
  tell({ closed: response.streamClosed });
} catch (error) {
  tell({ error: error.status ?? String(error), text: error.text ?? error.details ?? null });
}
