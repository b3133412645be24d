// The scenarios with the AI SDK's @ai-sdk/open-responses: whole items go back, and nothing by reference.

import { createOpenResponses } from "@ai-sdk/open-responses";

import { scenarios } from "./ai_sdk.mjs";
import { BASE_URL, run } from "./scenarios.mjs";

const provider = createOpenResponses({ name: "router", url: `${BASE_URL}/responses`, apiKey: "none" });

await run(scenarios((name) => provider(name)));
