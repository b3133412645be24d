"""What each key of the settings is for, in Markdown: for docs/settings.md and the hints of editors. The service itself
imports none of it."""

from __future__ import annotations

# By the key; `[]` stands for any entry of a list, or any name.
HELP: dict[str, str] = {
    # ── servers ──
    "endpoints": (
        "The model servers. None: those of this machine that answer at their usual ports (Ollama 11434, LM Studio "
        "1234, llama.cpp and llama-swap 8080, llama-swap 9292, vLLM 8000), or the Ollama that `OLLAMA_URL` names"
    ),
    "endpoints[].url": (
        "Where it is. For `openai-chat` and `openai` with the path of its API: `https://api.openai.com/v1`; for the "
        "others with or without `/v1`"
    ),
    "endpoints[].kind": (
        "`ollama`, `llama.cpp`, `llama-swap`, `vllm`, `lmstudio`, `nomyo` (another of these routers), `openai-chat` "
        "(any chat-completions server) or `openai` (speaks Responses itself; requests go out as they came); `auto` "
        "asks the server"
    ),
    "endpoints[].name": "What it is called in addresses, headers and the log. Default: host and port",
    "endpoints[].api_key": "The key that the server asks for",
    "endpoints[].headers": "More headers for each request to it",
    "endpoints[].max_concurrent": "Requests at once; more wait for a slot. Default: what the server reports, else 16",
    "endpoints[].weight": "A server of weight 2 gets twice the share",
    "endpoints[].priority": "A server of a higher number gets what those of lower ones cannot take",
    "endpoints[].models": "Which of its models are used",
    "endpoints[].models.names": (
        "Models that it has although it does not list them: `[a, b]`, for a server without `/v1/models`, or whose "
        "list fails"
    ),
    "endpoints[].models.include": "Which of its models are used, as patterns: `[qwen3*]`",
    "endpoints[].models.exclude": "Which are not, as patterns",
    "endpoints[].aliases": 'Other names for its models: `{fast: "qwen3:0.6b"}`',
    "endpoints[].connect_timeout_s": "Seconds to wait for a connection",
    "endpoints[].first_byte_timeout_s": (
        "Seconds to wait for the first byte of an answer; then the request goes elsewhere"
    ),
    "endpoints[].read_timeout_s": "Seconds of silence after which an answer counts as dead",
    "endpoints[].reasoning_efforts": (
        "The words that the server knows for how much to think; others become the next lower one. `[]`: it is sent "
        "none. Default: by kind"
    ),
    "endpoints[].reasoning_replay": (
        "Where the server reads earlier reasoning: `reasoning_content`, `reasoning`, `think_tags` (in the text) or "
        "`none`. Default: by kind"
    ),
    "endpoints[].structured_outputs": (
        "For a server that cannot hold its model to a JSON format: `prompt` (the format is described to the model, "
        "its answer is checked, it may repair it once) or `refuse` (a 400). Default: by kind, mostly `native`"
    ),
    "endpoints[].think_tags": (
        "`<think>…</think>` at the start of an answer becomes reasoning; `opened` where the server's templates open "
        "the tag themselves, so that answers hold only `</think>`; `off` leaves both in the text"
    ),
    "fallback_models": 'Models that may answer in place of one: `{gpt-5: ["qwen3:32b"]}`',
    "models_refresh_s": "How often, in seconds, the servers are asked for their models",
    # ── who may use it ──
    "api_key": (
        "The admin key: what clients must send as `Authorization: Bearer …`, `x-api-key: …` or `api-key: …`; empty "
        "asks for none, where there are no `keys` either"
    ),
    "keys": "Keys of a team, besides those that `./nomyo keys` keeps in the database",
    "keys[].name": "What the key is called",
    "keys[].key": "The key itself; or its `sha256`",
    "keys[].sha256": "The SHA-256 of the key, as 64 hexadecimal digits",
    "keys[].owner": (
        "Whose everything is that it makes; several keys may share one. Default: the name; of an admin all admins"
    ),
    "keys[].admin": "Whether it may see and change the fleet, the cache, the keys and the metrics",
    "keys[].models": (
        'Patterns of the models that it may see and use: `["qwen*"]`; a model goes by all of its names and aliases'
    ),
    "keys[].priority": (
        "Of those who wait for a slot, and of background turns that wait, the lower ones come first (-1000 to 1000), "
        "before any fairness. A client's `service_tier` is the server's to heed"
    ),
    "keys[].expires": "The last day on which it is valid, in UTC (`2027-01-31`), or a time (`2027-01-31T12:00:00Z`)",
    "keys[].rpm": "Requests a minute",
    "keys[].tpm": "Tokens a minute",
    "keys[].concurrent": "Turns at once, without those in the background",
    "keys[].background": "Background turns that wait or run",
    "keys[].budget": "Tokens a calendar day or month (UTC): `1000000/day`, `1M/day, 20M/month`",
    "keys[].cost": "The same of their cost, by `prices`: `20/month`",
    "owners": "What all keys of an owner may use together",
    "owners[].name": "The owner, as keys name it",
    "owners[].rpm": "Requests a minute",
    "owners[].tpm": "Tokens a minute",
    "owners[].concurrent": "Turns at once, without those in the background",
    "owners[].background": "Background turns that wait or run",
    "owners[].budget": "Tokens a calendar day or month (UTC): `1000000/day`, `1M/day, 20M/month`",
    "owners[].cost": "The same of their cost, by `prices`: `20/month`",
    "prices": "What a million tokens of a model cost, by model: `{gpt-5: {input: 1.25, cached: 0.125, output: 10}}`",
    "prices[].input": "A million tokens of the input",
    "prices[].cached": "A million tokens of the input that the server had cached. Default: as `input`",
    "prices[].output": "A million tokens of the output, with its reasoning",
    "metrics_open": "Whether `/metrics` asks for no key; else it takes an admin's",
    "allow_open": (
        "Whether a router without a key serves other machines too; without it and without a key, loopback alone"
    ),
    "secret_key": (
        "Seals what clients carry for us (`encrypted_content`); the same for all routers that share clients. "
        "Default: made once, kept in the database"
    ),
    "cors_origins": (
        "Pages of which origins may use the router, besides those of this machine (`http://localhost:3000`) and of "
        "apps (`app://`, `tauri://`, `vscode-webview://`, …): `[https://chat.example]`; `*` stands for any text"
    ),
    "allowed_hosts": (
        "Public names by which clients may call a router without a key: `[router.example]`, `*` stands for any "
        "text. Addresses, names without a dot and those in `.localhost`, `.local` and `.internal` always pass"
    ),
    "public_url": (
        "Where clients reach the router, behind a proxy: `https://router.example`, `https://example.org/llm`. Its name "
        "is one of `allowed_hosts`, and the page's cookie is `Secure`, and for that path"
    ),
    "page": "The live page at `/`",
    "page.content": (
        "Whether the page shows admins what all owners have asked and were answered; their own they see anyway"
    ),
    # ── requests ──
    "max_body_mb": "The largest request body, unpacked",
    "max_items": (
        "The items of one request; more are a 400, and so are 25 values of JSON for each item (100 where a body is "
        "passed on)"
    ),
    "max_tools": "The tools of one request, those in namespaces too",
    "max_answer_mb": "The largest answer of a server, unpacked; a larger one is a 502",
    "hosted_tools": (
        "What becomes of tools that only OpenAI can run: `omit` (left out, named in `x-nomyo-omitted-tools`) or "
        "`refuse` (a 400)"
    ),
    "workers": "Processes, one a core at most. What they share and what not: [how it works](how-it-works.md)",
    "websockets": (
        "Whether `/v1/responses` takes WebSockets; false answers the upgrade with 426, and clients use HTTP"
    ),
    "stream_start_s": (
        "Seconds after which a streamed answer of `/v1/responses` begins, though its backend has sent nothing yet: "
        "clients and proxies take silence for a failure. What else stands in headers is in the last response "
        "then, as `nomyo: {endpoint, model, …}`, and an error is `response.failed`"
    ),
    "head_timeout_s": (
        "Seconds that the head of a request may take; then it is a 408. A head of more than 64 KB or 200 headers is "
        "a 431"
    ),
    "body_timeout_s": "Seconds that nothing of a request's body may come; then it is a 408",
    "client_write_timeout_s": (
        "Seconds that a client may read nothing of an answer that is ready for it; then its connection is closed "
        "and the turn ends"
    ),
    "keep_alive_s": "Seconds that a connection may wait for its next request",
    "max_connections": (
        "Connections of clients to one process, or three quarters of what `ulimit -n` allows (its hard limit); past "
        "it those close that have waited longest"
    ),
    # ── what is kept ──
    "database": "Where responses are kept, and for how long",
    "database.url": (
        "`sqlite:///relative/path`, `sqlite:////absolute/path`, or `sqlite://` for memory alone. A file is for one "
        "router at a time (with all its `workers`), which `router.db.lock` beside it keeps: a second one does not "
        "start. `postgresql://user:password@host/database?sslmode=require`, which any number of routers share; what "
        "it leaves out is taken from `PGHOST`, `PGPASSWORD` and so on"
    ),
    "database.direct_url": (
        "Of PostgreSQL behind a pooler of transactions (PgBouncer): the server itself, to change tables and to "
        "listen. Without it deletions by other routers are noticed a second later. Default: `database.url`"
    ),
    "database.retention_days": (
        "Older responses are deleted, unless a younger one builds on them, and conversations that got no items for "
        "so long; 0: never"
    ),
    "database.max_connections": "To PostgreSQL, of each process; at least 4",
    "database.timeout_s": "Seconds that a statement in PostgreSQL may take",
    "cluster": "What several replicas share",
    "cluster.url": (
        "A Valkey, or a Redis from 6 on, by which several replicas share what they count: "
        "`valkey://:password@host:6379/0`, `valkeys://` over TLS (`redis://`, `rediss://` too). One server: a "
        "Sentinel, or a part of a cluster, is refused at the start; give an address that follows the primary. While it "
        "is away each replica counts for itself, and `/health` has `cluster: apart`"
    ),
    "cluster.name": "Sets apart services that share one Valkey",
    "cluster.advertise": (
        "`host` or `host:port` where the other replicas ask this one. Default: the address from which it reaches "
        "the Valkey, and any port. With `workers`, each has the port behind the last one's"
    ),
    "cache": 'Answers for requests that ask for the cache: `"nomyo": {"cache": true}`',
    "cache.backend": "`memory`, `sqlite` (survives restarts), `valkey` (all replicas have it) or `none`",
    "cache.path": "The file of the SQLite cache",
    "cache.max_entries": "How many are kept; the least recently used go first",
    "cache.max_age_s": "Seconds that an entry lives",
    "cache.url": "The Valkey of the cache. Default: `cluster.url`",
    # ── turns ──
    "background": 'Turns that run without a client: `"background": true`',
    "background.max_concurrent": "Background turns at once",
    "background.max_queued": "How many may wait; more are a 429",
    "background.drain_s": (
        "Seconds that a stop waits for what runs, in the background or not; the rest ends as `failed` with the code "
        "`interrupted`, or a 503"
    ),
    "background.rerun": (
        "Run those that a stop or a crash interrupted again, from their beginning; else they are `failed`. Those "
        "that only waited always run after the next start"
    ),
    "background.events_hours": (
        "Hours that the events of a background stream are kept in the Valkey of `cluster.url`, where every replica "
        "reads them; the store keeps them as long as the response"
    ),
    "queue": "Requests that wait for a free slot of an endpoint",
    "queue.max": "How many may wait; more are a 429",
    "queue.timeout_s": "Seconds that one waits, then it is a 429",
    "retry": "Requests that failed before their first byte, and go to another endpoint",
    "retry.max": "How often a request is tried again",
    "retry.budget": "Retries are at most this share of all requests",
    "breaker": "Models of a server that fail one request after the other are left alone for a while",
    "breaker.failures": "Failures in a row after which a server's model is left alone",
    "breaker.cooldown_s": "For how many seconds; doubled with each probe that fails",
    "breaker.max_cooldown_s": "The longest of those times",
    "adapt": "What may be changed in a request so that a server takes it; each change is named in `x-nomyo-adapted`",
    "adapt.truncation": "With `truncation: auto`, leave out the oldest turns of a conversation that is too long",
    "adapt.fetch_images": "Fetch remote images for servers that cannot",
    "adapt.hints": "Leave out hints that a server refuses (`prompt_cache_key`, `user`, `verbosity`, …)",
    "adapt.roles": (
        "Move or join messages where a model's template takes no system text in the middle, or roles must alternate"
    ),
    "adapt.tools": "Leave out tools that a server refuses; else they are a 400",
    "adapt.images": "Leave out images that a server refuses; else they are a 400",
    "adapt.parameters": "Leave out other parameters that a server refuses; else they are a 400",
    "adapt.verify": (
        "Check what was asked for with a strict schema also where the server holds its model to it "
        "(`structured_outputs: native`): one try to repair it, else a 502. Such an answer is not streamed piece by "
        "piece"
    ),
    "images": "Images that requests name by URL, fetched for servers that cannot",
    "images.max_mb": "The largest one",
    "images.timeout_s": "Seconds that one may take",
    "images.allow_private": "Whether they may lie at addresses that are not public",
    "images.max_count": (
        "Distinct URLs in one request: older ones are named and not shown, too many new ones are a 400"
    ),
    "images.max_total_mb": "Of one request together",
    "files": "Files that requests name by `file_url`, fetched for chat servers",
    "files.max_mb": "The largest one",
    "files.timeout_s": "Seconds that one may take",
    "files.allow_private": "Whether they may lie at addresses that are not public",
    "files.max_count": "Distinct URLs in one request",
    "files.max_total_mb": "Of one request together",
    "tools": "Tools that the router runs",
    "tools.max_rounds": "How often a model is asked again with what its tools have answered",
    "tools.concurrency": "Calls of one turn at once",
    "tools.timeout_s": "Seconds for each call, whatever progress it reports",
    "tools.code_interpreter": (
        "What runs the code of models: `mcp:NAME`, or `mcp:NAME/TOOL`, is a tool of one of `mcp.servers` that takes "
        "`code` (and keeps files by `container_id` or `session_id`, if it takes that); empty: nothing does, and the "
        "tool is left out"
    ),
    "tools.file_search": "What searches files, in the same way: a tool that takes a `query`",
    "tools.image_generation": (
        "What makes pictures: a tool that takes a `prompt`, in the same way, or a server of images that speaks "
        'OpenAI\'s API: `{url: "http://10.0.0.9:8000/v1", model: flux}`'
    ),
    "tools.image_generation.url": "Where it is, with its `/v1`",
    "tools.image_generation.api_key": "The key that it asks for",
    "tools.image_generation.model": "Its model, whichever a request names; empty: that of the request",
    "mcp": "MCP servers that any model can use",
    "mcp.servers": (
        "By name, which requests use as `{type: mcp, server_label: NAME}` (or `connector_id: NAME`): `{wiki: {url: "
        '"http://10.0.0.7/mcp"}}`'
    ),
    "mcp.servers[].url": "Where it is; or a `command`",
    "mcp.servers[].transport": "`http` (streamable), or `sse` for the older one",
    "mcp.servers[].command": "A program that is started for each turn that calls it: `[uvx, server]`",
    "mcp.servers[].env": "Variables for that program",
    "mcp.servers[].headers": "More headers for each request to it",
    "mcp.servers[].owners": "Whose turns may use it. Default: all",
    "mcp.servers[].require_approval": "Whether somebody approves of each call; a client can ask for more, not less",
    "mcp.servers[].always": "Whether every turn of `/v1/responses` is offered it",
    "mcp.client_servers": "Whether clients may name servers by `server_url`. Default: `allow`, with keys `deny`",
    "mcp.allow_private": "Whether those may lie at addresses that are not public. Default: true, with keys false",
    "log": "The log: one line each of what happens",
    "log.format": "Lines as `text`, or each as an object of JSON",
    "log.level": (
        "From which level on lines are logged (`./nomyo serve --log-level`). Prompts and keys are at none. Libraries "
        "log from `warning` on, whatever it is"
    ),
    "log.requests": (
        "A line for each request too (`--no-access-log`: none): its id, owner, front door, model, endpoint, status, "
        "tokens, times and tries; some µs each"
    ),
    "traces": "A span for each turn, sent to a collector of OpenTelemetry",
    "traces.endpoint": (
        "Where spans are sent by OTLP over gRPC: `http://collector:4317`, or `https://…`. OpenTelemetry's own "
        "variables hold too: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …. Takes the "
        "extra `otel`"
    ),
    "traces.headers": "Headers for the collector",
    "traces.content": "Whether what was asked and answered goes with the spans",
    "web_search": "Web searches that any model can make",
    "web_search.provider": (
        "Who searches: `searxng`, `brave`, `tavily`, `exa`, or `mcp:NAME` (a tool of one of `mcp.servers`); empty: "
        "nobody, and the tool is left out"
    ),
    "web_search.url": "Where it is. Of SearXNG it must be given, and its `search.formats` must have json",
    "web_search.api_key": "The key that it asks for",
    "web_search.timeout_s": "Seconds that a search or a page may take",
    "web_search.allow_private": "Whether pages that a model opens may lie at addresses that are not public",
}
