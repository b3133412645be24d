// A turn, streamed: a request out, its events in as they come.

import { RouterError } from "../api.js";

const FRAME_END = /\r?\n\r?\n/;

/** Sends a turn, and calls `onHeaders(headers)` and then `onEvent(event)` for each. Throws a `RouterError`, and an AbortError where `signal` ends it. */
export async function streamTurn(body, { signal, onHeaders, onEvent }) {
  let answer;
  try {
    answer = await fetch("v1/responses", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ ...body, stream: true }), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RouterError(0, { message: "The router does not answer." });
  }
  onHeaders(answer.headers);
  if (!answer.ok) throw new RouterError(answer.status, (await answer.json().catch(() => null))?.error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split(FRAME_END);
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data && data !== "[DONE]") onEvent(JSON.parse(data));
    }
  }
}
