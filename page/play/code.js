// The same request elsewhere: curl, Python, node, and a configuration of Codex.

import { address } from "../api.js";

const base = () => address("v1");
const KEY = "ROUTER_API_KEY";

/** A text as a shell takes it, whatever is in it. */
export const shell = (value) => `'${value.replaceAll("'", "'\\''")}'`;

export function curl(body, asks_for_key) {
  const key = asks_for_key ? ` \\\n  -H "Authorization: Bearer $${KEY}"` : "";
  return `curl -N ${base()}/responses${key} \\\n  -H "Content-Type: application/json" \\\n  -d ${shell(JSON.stringify({ ...body, stream: true }, null, 2))}`;
}

export function python(body, asks_for_key) {
  const given = Object.entries(body).map(([name, value]) => `    ${name}=${pythonValue(value, 1)},`);
  const key = asks_for_key ? `os.environ["${KEY}"]` : '"any"';
  return `${asks_for_key ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base())}, api_key=${key})

stream = client.responses.create(
${given.join("\n")}
    stream=True,
)
for event in stream:
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)
`;
}

/** A value of JSON as Python writes it. */
export function pythonValue(value, depth = 0) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const indent = "    ".repeat(depth + 1);
  const rows = Array.isArray(value) ? value.map((one) => pythonValue(one, depth + 1)) : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return rows.length ? `${open}\n${rows.map((row) => `${indent}${row},`).join("\n")}\n${"    ".repeat(depth)}${close}` : `${open}${close}`;
}

export function node(body, asks_for_key) {
  const key = asks_for_key ? `process.env.${KEY}` : '"any"';
  const given = JSON.stringify({ ...body, stream: true }, null, 2);
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: ${JSON.stringify(base())}, apiKey: ${key} });

const stream = await client.responses.create(${given});
for await (const event of stream) {
  if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
}
`;
}

export function codex(body, asks_for_key) {
  return `# ~/.codex/config.toml; ./nomyo codex writes a catalog of the models, too
model = ${JSON.stringify(body.model)}
model_provider = "nomyo"${body.reasoning?.effort ? `\nmodel_reasoning_effort = ${JSON.stringify(body.reasoning.effort)}` : ""}

[model_providers.nomyo]
name = "nomyo-router"
base_url = ${JSON.stringify(base())}
wire_api = "responses"
${asks_for_key ? `env_key = "${KEY}"` : "# no key is asked for"}
`;
}
