// Times in the reader's zone, questions before acts that hurt, and figures that change by the second.
"use strict";
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
document.cookie = `headgate_tz=${encodeURIComponent(zone)}; path=/; max-age=31536000; samesite=strict`;

const STYLES = {
  day: { year: "numeric", month: "short", day: "numeric" },
  hour: { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" },
  second: { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" },
};
function localize(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime), style = STYLES[time.dataset.style] || STYLES.hour;
    // on a phone there is no room for a day that goes without saying
    const brief = innerWidth < 640 && style.second && at.toDateString() === today;
    time.textContent = brief ? at.toLocaleTimeString() : at.toLocaleString(undefined, style);
    time.title = at.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
  }
}
localize(document);

const current = document.querySelector("nav [aria-current]");  // on a phone the row of pages is cut
if (current) current.parentElement.scrollLeft = current.offsetLeft - (innerWidth - current.offsetWidth) / 2;
document.querySelector("nav")?.addEventListener("focusin", (event) =>
  event.target.scrollIntoView({ block: "nearest", inline: "center" }));

for (const place of document.querySelectorAll("[data-origin]"))
  place.textContent = place.textContent.replace("ORIGIN", location.origin);

document.addEventListener("submit", (event) => {
  const words = event.submitter?.dataset.confirm || event.target.dataset.confirm;
  if (words && !confirm(words)) event.preventDefault();
});
for (const form of document.querySelectorAll("form[data-auto]")) {
  if (!form.querySelector("input:not([type=hidden])")) form.classList.add("auto");
  // by keyboard a list changes at every step: then Enter, or the button, says when it is chosen
  let byKeys = false;
  form.addEventListener("pointerdown", () => (byKeys = false));
  form.addEventListener("keydown", (event) => {
    if (event.target.tagName !== "SELECT" || event.key === "Tab") return;
    byKeys = true;
    form.classList.remove("auto");
  });
  form.addEventListener("change", (event) => {
    if (event.target.name === "period")
      for (const name of ["since", "until"]) if (form.elements[name]) form.elements[name].value = "";
    if (event.target.name === "since" && form.elements.period) form.elements.period.value = "custom";
    if ((event.target.tagName === "SELECT" && !byKeys) || event.target.type === "checkbox")
      if (form.elements.period?.value !== "custom" || form.elements.since?.value) form.requestSubmit();
  });
}

// A refused form comes back open and as it was typed, to be put right instead of written again.
function refill({ path, fields }) {
  const given = new Map();
  for (const [name, value] of fields) given.set(name, [...(given.get(name) || []), value]);
  const target = [...document.querySelectorAll("main form[method=post]")].find((form) =>
    [form.action, ...[...form.querySelectorAll("[formaction]")].map((one) => one.formAction)].some((to) => new URL(to).pathname === path) &&
    [...form.querySelectorAll("input[type=hidden]:not([name=instead_of])")].every((one) => given.get(one.name)?.includes(one.value)));
  if (!target) return;
  for (const one of target.elements) {
    if (!one.name || one.type === "hidden") continue;
    const values = given.get(one.name) || [];
    if (one.type === "checkbox") one.checked = values.includes(one.value);
    else if (values.length) one.value = values[0];
  }
  for (let place = target.closest("details"); place; place = place.parentElement.closest("details")) place.open = true;
  target.querySelector("input:not([type=hidden]), select, textarea")?.focus();
}
const typed = document.getElementById("content")?.dataset.typed;
if (typed) refill(JSON.parse(typed));

const TAGS = { ready: "good", drained: "warn", away: "bad" };
function show(figures) {
  for (const place of document.querySelectorAll("[data-live]")) {
    const value = figures[place.dataset.live];
    if (value === undefined || place.textContent === String(value)) continue;
    place.textContent = value;
    if (place.classList.contains("tag")) place.className = `tag ${TAGS[value] || ""}`;
  }
}

// The followed list: rows are made from the page's template, their texts only ever texts.
const follow = document.getElementById("follow");
const MOST_ROWS = 50;
function add(rows) {
  const body = document.getElementById("request-rows"), template = document.getElementById("request-row");
  const known = new Set([...body.rows].map((row) => row.dataset.id));
  const wanted = Object.entries(follow.dataset).filter(([, value]) => value);
  const fits = (row) => !known.has(row.request_id) && wanted.every(([name, value]) => row[name] === value);
  for (const row of rows.filter(fits).reverse()) {
    const made = template.content.cloneNode(true).firstElementChild;
    made.dataset.id = row.request_id;
    made.querySelector("a").href = `/request/${encodeURIComponent(row.request_id)}`;
    made.querySelector("time").dateTime = row.at;
    for (const place of made.querySelectorAll("[data-of]")) place.textContent = row[place.dataset.of] || "–";
    const outcome = made.querySelector("[data-of=outcome]");
    if (row.outcome !== "ok") {
      outcome.className = `tag ${row.outcome === "error" ? "bad" : "warn"}`;
      outcome.textContent = `${row.outcome} ${row.status}`;
    }
    if (row.cache === "exact" || row.cache === "semantic") made.querySelector("[data-of=cache]").className = "tag good";
    localize(made);
    body.prepend(made);
  }
  while (body.rows.length > MOST_ROWS) body.lastElementChild.remove();
}

if (document.querySelector("[data-live], #follow")) {
  let source;
  const wanted = () => !document.hidden && (follow === null || follow.checked);
  const open = () => {
    source = new EventSource(follow?.checked ? "/live?rows" : "/live");
    source.onmessage = (event) => {
      const message = JSON.parse(event.data);
      show(message.figures);
      if (message.rows && follow?.checked) add(message.rows);
      document.dispatchEvent(new CustomEvent("live", { detail: message }));
    };
  };
  // a page in the background asks for nothing, nor does a list that is not followed
  const turn = () => {
    if (!wanted()) source?.close(), (source = undefined);
    else if (!source) open();
  };
  document.addEventListener("visibilitychange", turn);
  follow?.addEventListener("change", turn);
  turn();
}
