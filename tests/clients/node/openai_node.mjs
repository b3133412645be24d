// The scenarios with openai-node: `new OpenAI().responses`, its strict stream helper, its tool runner and its WebSocket.

import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { ResponsesToolRunner } from "openai/helpers/responses-tool-runner";
import { ResponsesWS } from "openai/resources/responses/ws";
import { z } from "zod";

import { BASE_URL, CODE, FILES, PIXEL, PNG_BEGINS, TRIPS, WEATHER, collected, raised, run } from "./scenarios.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: "none", maxRetries: 0 });
const { responses } = client;

const Person = z.object({ name: z.string(), age: z.number().int() });
const TOOL = zodResponsesFunction({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.string() }),
});

const usageOf = ({ usage }) => ({
  input: usage.input_tokens,
  cached: usage.input_tokens_details.cached_tokens,
  output: usage.output_tokens,
  reasoning: usage.output_tokens_details.reasoning_tokens,
});

const callsOf = (response) => response.output.filter((item) => item.type === "function_call");

const outputsOf = (response) =>
  callsOf(response).map((call) => ({
    type: "function_call_output",
    call_id: call.call_id,
    output: WEATHER[call.parsed_arguments.city],
  }));

/** The deltas of one type, and the response. */
async function streamed(request, type) {
  const stream = responses.stream(request);
  const deltas = [];
  for await (const event of stream) if (event.type === type) deltas.push(event.delta);
  return [deltas, await stream.finalResponse()];
}

const planned = (response) => {
  const calls = response.output.filter((item) => item.type === "mcp_call");
  const outputs = calls.map((call) => call.output);
  return { calls: calls.map((call) => [call.name, call.arguments]), outputs, text: response.output_text };
};

const itemOf = (response, type) => response.output.find((item) => item.type === type);
const citedOf = (response) => itemOf(response, "message").content.flatMap((part) => part.annotations);

const scenarios = {
  async text(model) {
    const response = await responses.create({ model, instructions: "Be brief.", input: "Say hello." });
    return { text: response.output_text, usage: usageOf(response) };
  },

  async stream(model) {
    const request = { model, instructions: "Be brief.", input: "Say hello." };
    const [deltas, response] = await streamed(request, "response.output_text.delta");
    return { deltas, text: response.output_text, usage: usageOf(response) };
  },

  // Streamed, its deltas read; then answered by carrying it along, sealed.
  async reasoning(model) {
    const request = { model, store: false, include: ["reasoning.encrypted_content"], tools: [TOOL] };
    const question = { role: "user", content: "The weather in Paris?" };
    const [thoughts, first] = await streamed({ ...request, input: [question] }, "response.reasoning_text.delta");
    const second = await responses.create({ ...request, input: [question, ...first.output, ...outputsOf(first)] });
    return { reasoning: thoughts.join(""), text: second.output_text };
  },

  async tools(model) {
    const question = { role: "user", content: "The weather in Paris and Oslo?" };
    const first = await responses.parse({ model, input: [question], tools: [TOOL] });
    const input = [question, ...first.output, ...outputsOf(first)];
    const second = await responses.parse({ model, input, tools: [TOOL] });
    return { calls: callsOf(first).map((call) => [call.name, call.arguments]), text: second.output_text };
  },

  // Chained by previous_response_id: only the outputs are sent.
  async tools_stream(model) {
    const request = { model, input: "The weather in Paris and Oslo?", tools: [TOOL] };
    const [fragments, first] = await streamed(request, "response.function_call_arguments.delta");
    const calls = callsOf(first).map((call) => [call.name, call.arguments]);
    if (fragments.join("") !== calls.map(([, text]) => text).join("")) throw new Error("the deltas are not the arguments");
    const [, second] = await streamed({ model, previous_response_id: first.id, input: outputsOf(first), tools: [TOOL] });
    return { calls, text: second.output_text };
  },

  async structured(model) {
    const format = zodTextFormat(Person, "Person");
    const response = await responses.parse({ model, input: "Who was Ada?", text: { format } });
    return Person.parse(response.output_parsed);
  },

  async chain(model) {
    const first = await responses.create({ model, input: "The capital of France?" });
    const second = await responses.create({ model, input: "And of Norway?", previous_response_id: first.id });
    return { texts: [first.output_text, second.output_text] };
  },

  async image(model) {
    const content = [
      { type: "input_text", text: "What is this?" },
      { type: "input_image", image_url: PIXEL, detail: "auto" },
    ];
    return { text: (await responses.create({ model, input: [{ role: "user", content }] })).output_text };
  },

  async length(model) {
    const response = await responses.create({ model, input: "Count.", max_output_tokens: 16 });
    return { text: response.output_text, finish: [response.status, response.incomplete_details.reason] };
  },

  async refused(model) {
    const error = await raised(responses.create({ model, input: "Too long." }));
    return { error: error.constructor.name, status: error.status, code: error.code };
  },

  async broken(model) {
    const deltas = [];
    const stream = responses.stream({ model, input: "Go on." });
    stream.on("response.output_text.delta", (event) => deltas.push(event.delta));
    const error = await raised(stream.done());
    return { deltas, error: error.constructor.name, message: error.message };
  },

  // Retrieve, list its input, replay, delete.
  async stored(model) {
    const first = await responses.create({ model, input: "Say hello." });
    const again = await responses.retrieve(first.id);
    const items = await collected(responses.inputItems.list(first.id));
    const types = (await collected(await responses.retrieve(first.id, { stream: true }))).map((event) => event.type);
    await responses.delete(first.id);
    const error = await raised(responses.retrieve(first.id));
    return { text: again.output_text, input: items[0].content, ends: [types[0], types.at(-1)], gone: error.status };
  },

  async background(model) {
    let response = await responses.create({ model, input: "Say hello.", background: true });
    const begun = ["queued", "in_progress"].includes(response.status);
    while (["queued", "in_progress"].includes(response.status)) response = await responses.retrieve(response.id);
    return { begun, status: response.status, text: response.output_text };
  },

  async compact(model) {
    const compacted = await responses.compact({ model, input: [{ role: "user", content: "I am Ada." }] });
    const input = [...compacted.output, { role: "user", content: "Who am I?" }];
    const response = await responses.create({ model, input });
    return { types: compacted.output.map((item) => item.type), text: response.output_text };
  },

  async custom_tool(model) {
    const tools = [{ type: "custom", name: "note", description: "Writes a note.", format: { type: "text" } }];
    const [inputs, first] = await streamed({ model, input: "Note it.", tools }, "response.custom_tool_call_input.delta");
    const [call] = first.output;
    if (inputs.join("") !== call.input) throw new Error("the deltas are not the input");
    const output = { type: "custom_tool_call_output", call_id: call.call_id, output: "noted" };
    const second = await responses.create({ model, previous_response_id: first.id, input: [output], tools });
    return { input: call.input, text: second.output_text };
  },

  async tool_runner(model) {
    const { type, name, description, parameters, strict } = TOOL;
    const execute = ({ city }) => WEATHER[city];
    const runner = new ResponsesToolRunner({ functions: [{ tool: { type, name, description, parameters, strict }, execute }] });
    const input = [{ role: "user", content: "The weather in Paris and Oslo?" }];
    const response = await runner.run(client, { model, input }, { stream: true });
    return { text: response.output_text };
  },

  async websocket(model) {
    const socket = new ResponsesWS(client);
    const texts = [];
    const done = new Promise((resolve, reject) => {
      socket.on("error", reject);
      socket.on("response.completed", ({ response }) => {
        texts.push(response.output.flatMap((item) => item.content).map((part) => part.text).join(""));
        if (texts.length === 2) resolve();
        else ask("And of Norway?", { previous_response_id: response.id });
      });
    });
    const ask = (input, more) => socket.send({ type: "response.create", model, input, store: false, ...more });
    ask("The capital of France?");
    await done;
    socket.close();
    return { texts };
  },

  async code(model) {
    const request = { model, input: "Count.", tools: [CODE], include: ["code_interpreter_call.outputs"] };
    const [deltas, response] = await streamed(request, "response.code_interpreter_call_code.delta");
    const { code, outputs } = itemOf(response, "code_interpreter_call");
    if (deltas.join("") !== code) throw new Error("the deltas are not the code");
    return { code: [code], logs: outputs.map((output) => output.logs), text: response.output_text };
  },

  async files(model) {
    const request = { model, input: "Moss?", tools: [FILES], include: ["file_search_call.results"] };
    const [, response] = await streamed(request);
    const { queries, results } = itemOf(response, "file_search_call");
    const cited = citedOf(response).map((citation) => citation.filename);
    return { queries, files: results.map((result) => result.filename), cited, text: response.output_text };
  },

  async picture(model) {
    const [, response] = await streamed({ model, input: "Draw a cat.", tools: [{ type: "image_generation" }] });
    const { result } = itemOf(response, "image_generation_call");
    return { is_png: result.startsWith(PNG_BEGINS), text: response.output_text };
  },

  async web(model) {
    const [, response] = await streamed({ model, input: "Moss?", tools: [{ type: "web_search" }] });
    if (itemOf(response, "web_search_call").action.type !== "search") throw new Error("it is no search");
    return { cited: citedOf(response).map((citation) => citation.url), text: response.output_text };
  },

  async mcp(model) {
    const request = { model, input: "Plan a trip.", tools: [TRIPS] };
    const [deltas, response] = await streamed(request, "response.mcp_call_arguments.delta");
    if (deltas.join("") !== planned(response).calls[0][1]) throw new Error("the deltas are not the arguments");
    return planned(response);
  },

  async mcp_approval(model) {
    const tools = [{ ...TRIPS, require_approval: "always" }];
    const first = await responses.create({ model, input: "Plan a trip.", tools });
    const { id } = first.output.find((item) => item.type === "mcp_approval_request");
    const input = [{ type: "mcp_approval_response", approval_request_id: id, approve: true }];
    return planned(await responses.create({ model, input, tools, previous_response_id: first.id }));
  },
};

await run(scenarios);
