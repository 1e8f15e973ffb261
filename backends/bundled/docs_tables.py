"""What the demo models know about Headgate itself, out of the project's own docs.

Each line is `what a user wants or asks about: the answer`.
"""

from typing import Final


def _lines(text: str) -> list[tuple[str, str]]:
    """Read lines of `topic: answer`; a deeper line goes on with the one before."""
    joined = text.replace("\n        ", " ")
    pairs = (line.split(":", 1) for line in joined.splitlines() if line.strip())
    return [(topic.strip(), answer.strip()) for topic, answer in pairs]


COMMANDS: Final = _lines("""
    start the gateway: Run `headgate serve`. It starts the gateway and its local backends.
    start Headgate: Run `headgate serve`. It starts the gateway and its local backends.
    change the port: Run `headgate serve --port 9000`, or set `port` under `[server]`.
    run one engine alone: Run `headgate backend --model DIR`. Its flags are those of vLLM.
    chat in the terminal: Run `headgate chat`. It shows route, cache and cost of each answer.
    see the status: Run `headgate status`. It shows health, load and spending on one screen.
    explain a request: Run `headgate explain REQUEST_ID`. It shows the decision rule by rule.
    see why a request went to a model: Run `headgate explain REQUEST_ID`.
    set a budget: Run `headgate budgets set --scope team:NAME --limit-usd 5 --window day`.
    limit what a team spends: Run `headgate budgets set --scope team:NAME --limit-usd 5
        --window day`.
    give a team a daily limit: Run `headgate budgets set --scope team:NAME --limit-usd 5
        --window day`.
    make a budget that only warns: Add `--soft` to `headgate budgets set`.
    list the budgets: Run `headgate budgets list`.
    remove a budget: Run `headgate budgets remove`.
    create an API key: Run `headgate keys create --team NAME`. The key is shown once.
    get a key for a team: Run `headgate keys create --team NAME`. The key is shown once.
    revoke a key: Run `headgate keys revoke`.
    replace an old key: Run `headgate keys rotate`.
    list the keys: Run `headgate keys list`.
    see the costs: Run `headgate report costs`.
    see what each team costs: Run `headgate report costs --group-by team`.
    group costs by model: Run `headgate report costs --group-by model`.
    get the costs as CSV: Run `headgate report costs --format csv`.
    see the costs since a day: Run `headgate report costs --since 2026-11-01`.
    see how well the cache works: Run `headgate report cache`.
    check a policy: Run `headgate policy check`. It names every mistake.
    try a policy on a prompt: Run `headgate policy explain "PROMPT"`. Nothing is executed.
    try a policy on past traffic: Run `headgate policy replay`.
    see old versions of a policy: Run `headgate policy history`.
    go back to an older policy: Run `headgate policy rollback`.
    train the router: Run `headgate policy fit --outcomes F --out DIR`.
    list the models: Run `headgate models list`.
    measure a model: Run `headgate models eval MODEL`. It prints a table of pass rates.
    make a model smaller: Run `headgate quantize SRC DST --method int8`.
    plan capacity: Run `headgate plan`.
    measure speed: Run `headgate bench serve` or `headgate bench engine`.
    export a customer's data: Run `headgate data export --user NAME`.
    delete a customer's data: Run `headgate data delete --user NAME`. `--dry-run` only shows it.
    check the configuration: Run `headgate config check`.
    see the configuration in use: Run `headgate config show`.
    upgrade the database: Run `headgate db upgrade`.
    find out what is wrong with a machine: Run `headgate doctor`.
    make a team: Run `headgate teams create NAME`.
    set how many requests a key may send: Run `headgate keys limit`.
    set how many requests a team may send: Run `headgate teams limit`.
    make a user: Run `headgate users create NAME --team TEAM`.
    let a user in no more: Run `headgate users remove`. All keys of the user are revoked.
    see who changed what: Run `headgate audit`. It lists what administrators did.
    see the bill of a month: Run `headgate report bill 2026-11`.
    freeze a month: Run `headgate report close 2026-11`. What comes later goes to the next month.
    take a charge back: Run `headgate report correct`. The old charge stays, and is reversed.
    write the charges to a file: Run `headgate report export`. It writes CSV, Parquet or FOCUS.
    find the hours that do not add up: Run `headgate report reconcile`.
    compare costs with the time before: Run `headgate report costs --compare previous`.
    try a file of prompts through policies: Run `headgate policy simulate`.
    print the schema of a policy: Run `headgate policy schema`.
    see how good a model is: Run `headgate models inspect MODEL`, or measure it with
        `headgate models eval MODEL`.
    measure each kernel: Run `headgate bench kernels`.
    compare machines before buying: Run `headgate plan compare`.
    delete old requests: Run `headgate db prune`. Their sums stay.
    check the database: Run `headgate db check`. It compares sums, schema and audit chain.
    see the default settings: Run `headgate config show`.
    stop the gateway: Press Ctrl-C. Running requests may finish first.
    install Headgate: Run `pip install .`, then `headgate serve`.
    see the version: Run `headgate --version`.
""")
TASKS: Final = _lines("""
    turn the cache off for a request: Send the header `x-headgate-cache: off`.
    skip the cache: Send the header `x-headgate-cache: off`.
    use only exact cache hits: Send the header `x-headgate-cache: exact`.
    refresh a cached answer: Send the header `x-headgate-cache: refresh`.
    set a deadline for a request: Send the header `x-headgate-deadline-ms`.
    cap the cost of a request: Send the header `x-headgate-max-cost-usd`.
    choose a policy for a request: Send the header `x-headgate-policy`, or the model `policy:NAME`.
    tag a request: Send the header `x-headgate-tags`, such as `feature=faq,env=prod`.
    let the gateway choose the model: Ask for the model `auto`.
    ask for one backend: Ask for the model `backend:NAME`.
    write a rule: Add `[[rules]]` with `name`, `when` and `route` to `policies/NAME.toml`.
    write a policy: Write `policies/NAME.toml` with `[[rules]]` and a `[default]`.
    send hard requests to a big model: Write a rule with `when = { difficulty = { min = 0.5 } }`
        and `route = "base"`.
    send code to another model: Write a rule with `when = { task = ["code"] }` and a `route`.
    deny requests by a rule: Write a rule with `deny = "why"`.
    split traffic between models: Write a rule with `split = { a = 0.9, b = 0.1 }`.
    try a small model first: Write a rule with `cascade = ["nano", "base"]`.
    name a fallback: Add `fallbacks = ["small"]` beside the `route` of a rule.
    limit the tokens of an answer: Add `max_tokens = 256` to a rule.
    route by team: Write a rule with `when = { team = ["search"] }`.
    route by budget: Write a rule with `when = { budget_left = { max = 0.1 } }`.
    add a backend: Add a `[[backends]]` table to `headgate.toml`.
    add an outside provider: Add a `[[backends]]` table with `kind = "openai"` and `base_urls`.
    set the price of a machine: Set `usd_per_hour` in a `[[machines]]` table.
    turn the semantic cache on: Set `enabled = true` under `[cache.semantic]`.
    use my own Redis: Set `redis = "redis://HOST"` under `[cache]`.
    use PostgreSQL: Set `url = "postgresql+asyncpg://HOST"` under `[database]`.
    require keys: Set `auth = "keys"` under `[server]`.
    give a model another name: Add an alias under `[models]`.
    send feedback on an answer: Use `POST /feedback`.
    see a decision without running it: Use `POST /route/explain`, or `headgate policy explain`.
    listen on another address: Set `host` under `[server]`, with `auth = "keys"`.
    run more gateway processes: Set `workers` under `[server]`.
    make an alias for a model: Add a line under `[models]`, such as `"gpt-4o" = "auto"`.
    turn the exact cache off: Set `enabled = false` under `[cache.exact]`.
    keep answers for an hour: Set `ttl_s = 3600` under `[cache.exact]`.
    make the semantic cache stricter: Set a higher `threshold` under `[cache.semantic]`.
    keep requests for a year only: Set `retention_days = 365` under `[database]`.
    refuse requests when the ledger is away: Set `on_ledger_outage = "refuse"` under `[database]`.
    prove that no row was changed: Set `audit_chain = true` under `[database]`.
    explore other models by chance: Set `explore` under `[routing]`.
    choose the default policy: Set `policy` under `[routing]`.
    choose the cheapest good model: Add an `objective` to a policy.
    let a small model guess tokens: Set `method = "draft"` under `[backends.speculation]`.
    store weights in int8: Set `quantization = "int8"` on a backend.
    limit requests at one time: Set `max_concurrency` on a backend.
    set how long a context is: Set `max_model_len` under `[backends.engine]`.
    serve a model from a folder: Set `model` of a backend to the folder.
    serve a model of Hugging Face: Set `model = "hf:OWNER/NAME"` on a backend.
    share one machine among engines: Give their backends the same `machine`.
    cap a user: Set a budget with `--scope user:NAME`.
    cap all spending: Set a budget with `--scope global`.
    get a warning before a budget is spent: Set the budget with `--alert-at 80`.
    ask for JSON: Send `response_format` with your request.
    stream an answer: Send `"stream": true` with your request.
    use Headgate from an SDK: Set the base URL to `http://127.0.0.1:8080/v1`.
""")
MEANINGS: Final = _lines("""
    x-headgate-cache: It says how the cache answered: miss, exact, semantic or off.
    x-headgate-similarity: It says how close a semantic hit was to the question.
    x-headgate-cost-usd: It says what the request cost, in dollars.
    x-headgate-saved-usd: It says what a reused answer would have cost now.
    x-headgate-backend: It names the backend that answered.
    x-headgate-model: It names the model that answered.
    x-headgate-policy: It names the policy that decided.
    x-headgate-rule: It names the rule that matched.
    x-headgate-task: It says which kind of task the request is.
    x-headgate-difficulty: It says how hard the request is, from 0 to 1.
    x-headgate-request-id: It is the id of the request, also in logs and reports.
    x-headgate-deadline-ms: It is the deadline of a request in milliseconds.
    x-headgate-max-cost-usd: It is the most that a request may cost.
    x-headgate-tags: It carries tags that are reported on and matched by policies.
    /health: It shows the state of the gateway in detail.
    /health/ready: It says whether at least one route can answer.
    /health/live: It says that the gateway runs.
    /metrics: It gives metrics to Prometheus.
    /route/explain: It shows the decision for a request, and nothing is generated.
    /reports/costs: It gives the cost report to programs.
    /v1/chat/completions: It answers chats, as OpenAI's API does.
    headgate.toml: It is the configuration file of Headgate.
    insufficient_quota: It means that a budget is spent.
    policy_denied: It means that a policy refused the request.
    rate_limit_exceeded: It means that there were too many requests.
    budget_left: It is the share of the tightest budget that is left.
    difficulty: It is the chance that the reference model does not answer well.
    auto: It is the model name that lets the policy choose.
    /v1/embeddings: It turns texts into vectors, as OpenAI's API does.
    /v1/models: It lists the models that may be asked for.
    /feedback: It takes what users thought of an answer.
    port 8080: It is the port on which the gateway listens when no other is set.
    usd_per_hour: It is the price of a machine for one hour.
    base_urls: It lists the addresses of a backend.
    max_tokens: It is the most tokens that an answer may have.
    usage: It says how many tokens a request had.
    retention_days: It says how many days requests are kept.
""")
TERMS: Final = _lines("""
    a backend: A backend is one served model, on one or more addresses.
    a policy: A policy is a TOML file that decides which backend answers a request.
    a rule: A rule is one entry of a policy. The first rule that matches wins.
    a tier: A tier is a size of model, such as nano, small or base.
    a machine: A machine is something that is paid by the hour.
    a budget: A budget is the most that a team or key may spend in a time.
    a cascade: A cascade asks a small model first and a larger one if the answer is poor.
    a fallback: A fallback is the backend that answers when the first one fails.
    the exact cache: The exact cache answers a request that was asked before, word for word.
    the semantic cache: The semantic cache answers a request that means the same as an earlier one.
    the ledger: The ledger is where Headgate books what every token cost.
    the router: The router sends each request to a model of the right size.
    routing: Routing means to send each request to the model that fits it best.
    a gateway: A gateway stands between programs and the models that answer them.
    a prompt: A prompt is the text that is sent to a language model.
    a cache: A cache keeps answers, so that a repeat costs nothing.
    quantization: Quantization stores weights in fewer bits, so that a model is smaller.
    speculation: Speculation lets a small model guess tokens that a large one checks.
    an API key: An API key is a secret that says which team a request belongs to.
    the dashboard: The dashboard is a web page that shows costs, requests and backends.
    the audit log: The audit log says which administrator did what, and when.
    the journal: The journal keeps each charge safe until the ledger has it.
    a shadow copy: A shadow copy sends a request to a second model, whose answer nobody sees.
    a roll-up: A roll-up is a sum over an hour or a day, from which reports are fast.
    a draft model: A draft model guesses tokens that a larger model checks.
    a model card: A model card says how a model was made, and how good it is.
    continuous batching: Continuous batching lets new requests join while others are under way.
    the prefix cache: The prefix cache reuses the work on a beginning that requests share.
    a rate limit: A rate limit says how many requests or tokens may come in a minute.
    a replica: A replica is one of several servers of the same model.
    nano: Nano is the smallest demo model. It is the fastest and knows the least.
    base: Base is the largest demo model. It is the slowest and knows the most.
    an outcome: An outcome says whether a model answered a prompt well, and at what cost.
""")
