// The scenarios with the AI SDK's @ai-sdk/openai: earlier items go back by reference, or whole when nothing is stored.

import { createOpenAI } from "@ai-sdk/openai";
import { isStepCount } from "ai";

import { generate, scenarios, streamed } from "./ai_sdk.mjs";
import { BASE_URL, FILES, PNG_BEGINS, TRIPS, run } from "./scenarios.mjs";

const provider = createOpenAI({ baseURL: BASE_URL, apiKey: "none" });
const of = (name) => provider.responses(name);
const common = scenarios(of);
const UNSTORED = { store: false, forceReasoning: true, include: ["reasoning.encrypted_content"] };

const trips = (more) =>
  provider.tools.mcp({
    serverLabel: TRIPS.server_label,
    serverUrl: TRIPS.server_url,
    allowedTools: TRIPS.allowed_tools,
    ...more,
  });

const planned = ({ steps, text }) => ({
  calls: steps.flatMap((step) => step.toolCalls.map((call) => [call.toolName.slice(4), JSON.stringify(call.input)])),
  outputs: steps.flatMap((step) => step.toolResults.map((result) => result.output.output)),
  text,
});

await run({
  ...common,

  // It shows summaries only. Without a store, the reasoning goes back sealed …
  summary: (name) => common.reasoning(name, { openai: { ...UNSTORED, reasoningSummary: "auto" } }),
  sealed: async (name) => ({ text: (await common.reasoning(name, { openai: UNSTORED })).text }),

  // … and with one by reference.
  referred: async (name) => ({ text: (await common.reasoning(name, { openai: { forceReasoning: true } })).text }),

  async chain(name) {
    const first = await generate({ model: of(name), prompt: "The capital of France?" });
    const previousResponseId = first.providerMetadata.openai.responseId;
    const providerOptions = { openai: { previousResponseId } };
    const second = await generate({ model: of(name), prompt: "And of Norway?", providerOptions });
    return { texts: [first.text, second.text] };
  },

  // What only OpenAI runs does not stop a turn.
  async hosted_tool(name) {
    const tools = { web_search: provider.tools.webSearch({}) };
    return { text: (await generate({ model: of(name), prompt: "Say hello.", tools })).text };
  },

  async custom_tool(name) {
    const noted = [];
    const note = provider.tools.customTool({ description: "Writes a note.", format: { type: "text" } });
    note.execute = async (input) => {
      noted.push(input);
      return "noted";
    };
    const { text } = await streamed({ model: of(name), prompt: "Note it.", tools: { note }, stopWhen: isStepCount(3) });
    return { input: noted[0], text };
  },

  async shell(name) {
    const asked = [];
    const shell = provider.tools.shell({
      execute: async ({ action }) => {
        asked.push(action.commands);
        return { output: [{ stdout: "a.txt", stderr: "", outcome: { type: "exit", exitCode: 0 } }] };
      },
    });
    const request = { model: of(name), prompt: "List the files.", tools: { shell }, stopWhen: isStepCount(3) };
    return { commands: asked, text: (await streamed(request)).text };
  },

  async apply_patch(name) {
    const done = [];
    const apply_patch = provider.tools.applyPatch({
      execute: async ({ operation }) => {
        done.push([operation.type, operation.path, operation.diff]);
        return { status: "completed", output: "made" };
      },
    });
    const request = { model: of(name), prompt: "Make a file.", tools: { apply_patch }, stopWhen: isStepCount(3) };
    return { operations: done, text: (await streamed(request)).text };
  },

  async code(name) {
    const tools = { code_interpreter: provider.tools.codeInterpreter({}) };
    const { steps, text } = await streamed({ model: of(name), prompt: "Count.", tools });
    const code = steps.flatMap((step) => step.toolCalls.map((call) => call.input.code));
    const outputs = steps.flatMap((step) => step.toolResults.flatMap((result) => result.output.outputs));
    return { code, logs: outputs.map((output) => output.logs), text };
  },

  async files(name) {
    const tools = { file_search: provider.tools.fileSearch({ vectorStoreIds: FILES.vector_store_ids }) };
    const providerOptions = { openai: { include: ["file_search_call.results"] } };
    const { steps, text } = await streamed({ model: of(name), prompt: "Moss?", tools, providerOptions });
    const [{ output }] = steps.flatMap((step) => step.toolResults);
    const documents = steps.flatMap((step) => step.sources.filter((source) => source.sourceType === "document"));
    return {
      queries: output.queries,
      files: output.results.map((result) => result.filename),
      cited: documents.slice(0, 1).map((source) => source.filename),
      text,
    };
  },

  async picture(name) {
    const tools = { image_generation: provider.tools.imageGeneration({ partialImages: 2 }) };
    const { steps, text } = await streamed({ model: of(name), prompt: "Draw a cat.", tools });
    const results = steps.flatMap((step) => step.toolResults.map((result) => result.output.result));
    return { is_png: results.every((result) => result.startsWith(PNG_BEGINS)), text };
  },

  async web(name) {
    const tools = { web_search: provider.tools.webSearch({}) };
    const { steps, text } = await streamed({ model: of(name), prompt: "Moss?", tools });
    const sources = steps.flatMap((step) => step.sources.map((source) => source.url));
    return { cited: [...new Set(sources)], text };
  },

  async mcp(name) {
    return planned(await streamed({ model: of(name), prompt: "Plan a trip.", tools: { mcp: trips() } }));
  },

  // Its own code is asked whether the tool may run.
  async mcp_approval(name) {
    const tools = { mcp: trips({ requireApproval: "always" }) };
    const question = { role: "user", content: "Plan a trip." };
    const first = await generate({ model: of(name), messages: [question], tools });
    const { approvalId } = first.content.find((part) => part.type === "tool-approval-request");
    const approval = { role: "tool", content: [{ type: "tool-approval-response", approvalId, approved: true, providerExecuted: true }] };
    return planned(await generate({ model: of(name), messages: [question, ...first.response.messages, approval], tools }));
  },
});
