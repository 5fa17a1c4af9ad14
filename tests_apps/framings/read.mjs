// Reads answers with the clients of the Vercel AI SDK and of AG-UI, and writes what they got as JSON.
import { HttpAgent } from "@ag-ui/client";
import { DefaultChatTransport, readUIMessageStream } from "ai";

const url = process.argv[2];
const transport = new DefaultChatTransport({ api: `${url}/api/chat` });

async function ask(id, text) {
  const messages = [{ id: "1", role: "user", parts: [{ type: "text", text }] }];
  return await transport.sendMessages({ chatId: id, messages, trigger: "submit-message" });
}

async function read(stream, eachTime = () => {}) {
  let message, first = "";
  const onError = (error) => { first ||= error.message; };  // it reports the end of its own stream as another one
  try {
    for await (message of readUIMessageStream({ stream, onError, terminateOnError: true })) await eachTime(message);
  } catch { /* the error that onError has got */ }
  return { id: message.id, text: message.parts.map((part) => part.text).join(""), error: first };
}

async function run(id, content) {
  const agent = new HttpAgent({ url: `${url}/agent`, threadId: "1", initialMessages: [{ id: "1", role: "user", content }] });
  let error = "";
  agent.subscribe({ onRunErrorEvent: ({ event }) => { error = event.message; } });
  await agent.runAgent({ runId: id });
  const { id: answer, content: text } = agent.messages.at(-1);
  return { id: answer, text, error };
}

let begun = false;
async function beginAgain() {
  if (begun) return;
  begun = true;
  await fetch(`${url}/api/chat/anew/again`, { method: "POST" });
}

console.log(JSON.stringify({
  answer: await read(await ask("whole", "All is well.")),
  resumed: await read(await transport.reconnectToStream({ chatId: "whole" })),
  failed: await read(await ask("failed", "This will fail and end.")),
  anew: await read(await ask("anew", "This will wait a second."), beginAgain),
  newer: await read(await transport.reconnectToStream({ chatId: "anew" })),
  agent: await run("whole", "All is well."),
  failed_agent: await run("failed", "This will fail and end."),
}));
