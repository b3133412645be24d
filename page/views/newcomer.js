// What to do next, while no server answers: which were asked, why they do not answer, how to start one.

import { codeBlock, h, keyed, show, text, tabs } from "../dom.js";
import { live } from "../feed.js";

const STARTS = [
  ["Ollama", "# from ollama.com, then:\nollama serve\nollama pull llama3.2", "http://127.0.0.1:11434", "ollama"],
  ["llama.cpp", "llama-server -m model.gguf --port 8080", "http://127.0.0.1:8080", "llama.cpp"],
  ["vLLM", "vllm serve Qwen/Qwen3-8B --port 8000", "http://127.0.0.1:8000", "vllm"],
  ["LM Studio", "lms server start --port 1234", "http://127.0.0.1:1234", "lmstudio"],
  ["OpenAI", "export OPENAI_API_KEY=…", "https://api.openai.com/v1", "openai"],
];

export function newcomer() {
  const title = h("h2", {});
  const words = h("p", {});
  const asked = h("ul", { class: "asked" });
  const starts = tabs(
    "Ways to start a server",
    STARTS.map(([name, command, url, kind]) => ({
      name,
      panel: h(
        "div",
        { class: "grid two" },
        h("div", {}, h("h3", {}, "Start it"), codeBlock(() => command, `How to start ${name}`)),
        h("div", {}, h("h3", {}, "Name it in config.yaml"), codeBlock(() => setting(url, kind), `Settings for ${name}`)),
      ),
    })),
  );
  const element = h("section", { class: "card welcome", hidden: true, "aria-label": "What to do next" }, title, words, asked, starts, h("p", { class: "note" }, "The router looks again by itself every few seconds, and takes changes of config.yaml while it runs."));
  return {
    element,
    update() {
      const endpoints = live.fleet.endpoints;
      const works = endpoints.some(({ state, models }) => state !== "down" && models.length > 0);
      show(element, !works);
      if (works) return;
      text(title, endpoints.length ? "No model server answers yet" : "No model server is known yet");
      text(words, endpoints.length ? "The router runs, and has asked:" : "The router runs. Start a server of models, and name it in config.yaml:");
      keyed(asked, endpoints, ({ name }) => name, () => h("li", {}, h("code", {}), h("span", {})), (node, endpoint) => {
        text(node.firstChild, endpoint.url);
        text(node.lastChild, [endpoint.error ?? "it answers, and has no models.", endpoint.advice].filter(Boolean).join(" "));
      });
    },
  };
}

function setting(url, kind) {
  const key = kind === "openai" ? "\n    api_key: ${OPENAI_API_KEY}" : "";
  return `endpoints:\n  - url: ${url}\n    kind: ${kind}${key}`;
}
