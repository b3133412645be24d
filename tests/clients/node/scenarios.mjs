// What the scripts of this folder share: how they are called, and what they do with it. The same as ../python/scenarios.py.
//
//     node openai_node.mjs http://127.0.0.1:8000/v1 text stream …

import { inspect } from "node:util";

export const BASE_URL = process.argv[2];
export const WEATHER = { Paris: "sunny", Oslo: "rain" };
export const PIXEL =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
// A server of MCP with a tool `plan`, as clients name it; what it is asked for is run by the router.
export const TRIPS = {
  type: "mcp",
  server_label: "trips",
  server_url: process.env.MCP_URL,
  allowed_tools: ["plan"],
  require_approval: "never",
};
// Tools that OpenAI runs else.
export const CODE = { type: "code_interpreter", container: { type: "auto" } };
export const FILES = { type: "file_search", vector_store_ids: ["vs_1"] };
export const PNG_BEGINS = "iVBORw0KGgo";
const LIMIT_MS = 20_000;

/** Run those that the command line names, one after the other. */
export async function run(scenarios) {
  for (const name of process.argv.slice(3)) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error("it took too long")), LIMIT_MS);
    });
    let outcome;
    try {
      outcome = { result: await Promise.race([scenarios[name](name), late]) };
    } catch (error) {
      outcome = { error: inspect(error) };
    }
    clearTimeout(timer);
    console.log(JSON.stringify({ scenario: name, ...outcome }));
  }
}

export async function raised(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it raised nothing");
}

export async function collected(iterable) {
  const all = [];
  for await (const one of iterable) all.push(one);
  return all;
}
