// What is the same for every provider of the AI SDK: `generateText` and `streamText` over one of its language models.

import { Output, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import { z } from "zod";

import { PIXEL, WEATHER, raised } from "./scenarios.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const Person = z.object({ name: z.string(), age: z.number().int() });
const get_weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => WEATHER[city],
});

const usageOf = (usage) => ({
  input: usage.inputTokens,
  cached: usage.inputTokenDetails.cacheReadTokens,
  output: usage.outputTokens,
  reasoning: usage.outputTokenDetails.reasoningTokens,
});

const callsOf = (steps) =>
  steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName, JSON.stringify(call.input)]));

/** A stream read to its end, with the deltas of its text and of its reasoning. An error in it is thrown. */
export async function streamed(request) {
  const result = streamText({ maxRetries: 0, onError() {}, ...request });
  const deltas = [];
  const thoughts = [];
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") deltas.push(part.text);
    if (part.type === "reasoning-delta") thoughts.push(part.text);
    if (part.type === "error") throw Object.assign(new Error("the stream broke"), { deltas, part });
  }
  return { deltas, thoughts, text: await result.text, steps: await result.steps, usage: await result.usage };
}

export const generate = (request) => generateText({ maxRetries: 0, ...request });

/** The scenarios, with `of(name)` as the model of that name. */
export const scenarios = (of) => ({
  async text(name) {
    const { text, usage } = await generate({ model: of(name), system: "Be brief.", prompt: "Say hello." });
    return { text, usage: usageOf(usage) };
  },

  async stream(name) {
    const { deltas, text, usage } = await streamed({ model: of(name), system: "Be brief.", prompt: "Say hello." });
    return { deltas, text, usage: usageOf(usage) };
  },

  async reasoning(name, providerOptions) {
    const prompt = "The weather in Paris?";
    const request = { model: of(name), prompt, tools: { get_weather }, stopWhen: isStepCount(3), providerOptions };
    const { thoughts, text } = await streamed(request);
    return { reasoning: thoughts.join(""), text };
  },

  async tools(name) {
    const prompt = "The weather in Paris and Oslo?";
    const { steps, text } = await generate({ model: of(name), prompt, tools: { get_weather }, stopWhen: isStepCount(3) });
    return { calls: callsOf(steps), text };
  },

  async tools_stream(name) {
    const prompt = "The weather in Paris and Oslo?";
    const { steps, text } = await streamed({ model: of(name), prompt, tools: { get_weather }, stopWhen: isStepCount(3) });
    return { calls: callsOf(steps), text };
  },

  async structured(name) {
    const output = Output.object({ schema: Person });
    return (await generate({ model: of(name), prompt: "Who was Ada?", output })).output;
  },

  async structured_stream(name) {
    const output = Output.object({ schema: Person });
    const result = streamText({ maxRetries: 0, model: of(name), prompt: "Who was Ada?", output });
    let last;
    for await (const partial of result.partialOutputStream) last = partial;
    return last;
  },

  // The history kept by the client, as messages.
  async history(name) {
    const question = { role: "user", content: "The capital of France?" };
    const first = await generate({ model: of(name), messages: [question] });
    const messages = [question, ...first.response.messages, { role: "user", content: "And of Norway?" }];
    const second = await generate({ model: of(name), messages });
    return { texts: [first.text, second.text] };
  },

  async image(name) {
    const content = [
      { type: "text", text: "What is this?" },
      { type: "file", data: PIXEL, mediaType: "image/png" },
    ];
    return { text: (await generate({ model: of(name), messages: [{ role: "user", content }] })).text };
  },

  async length(name) {
    const { text, finishReason } = await generate({ model: of(name), prompt: "Count.", maxOutputTokens: 16 });
    return { text, finish: [finishReason] };
  },

  async refused(name) {
    const error = await raised(generate({ model: of(name), prompt: "Too long." }));
    return { error: error.name, status: error.statusCode, code: error.data?.error?.code };
  },

  async broken(name) {
    const { deltas, part } = await raised(streamed({ model: of(name), prompt: "Go on." }));
    const { error } = part;
    return { deltas, error: error.name ?? typeof error, message: error.message ?? JSON.stringify(error) };
  },

  // A tool with a schema of its own, which the model has to call.
  async tool_choice(name) {
    const schema = jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] });
    const find = tool({ description: "Finds a city.", inputSchema: schema });
    const toolChoice = { type: "tool", toolName: "find" };
    const { steps } = await generate({ model: of(name), prompt: "Find Paris.", tools: { find }, toolChoice });
    return { calls: callsOf(steps) };
  },
});
