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
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.textContent = at.toLocaleString(undefined, STYLES[time.dataset.style] || STYLES.hour);
    time.title = at.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" });
  }
}
localize(document);

for (const place of document.querySelectorAll("[data-origin]"))
  place.textContent = place.textContent.replace("ORIGIN", location.origin);

document.addEventListener("submit", (event) => {
  const words = event.submitter?.dataset.confirm || event.target.dataset.confirm;
  if (words && !confirm(words)) event.preventDefault();
});
for (const form of document.querySelectorAll("form[data-auto]")) {
  if (!form.querySelector("input:not([type=hidden])")) form.classList.add("auto");
  form.addEventListener("change", (event) => {
    if (event.target.name === "period")
      for (const name of ["since", "until"]) if (form.elements[name]) form.elements[name].value = "";
    if (event.target.name === "since" && form.elements.period) form.elements.period.value = "custom";
    if (event.target.tagName === "SELECT" || event.target.type === "checkbox")
      if (form.elements.period?.value !== "custom" || form.elements.since?.value) form.requestSubmit();
  });
}

const TAGS = { ready: "good", drained: "warn", away: "bad" };
function show(figures) {
  for (const place of document.querySelectorAll("[data-live]")) {
    const value = figures[place.dataset.live];
    if (value === undefined || place.textContent === String(value)) continue;
    place.textContent = value;
    if (place.classList.contains("tag")) place.className = `tag ${TAGS[value] || ""}`;
  }
}

// The list of requests, fetched again when something was settled; only while somebody follows.
const follow = document.getElementById("follow");
// Twice after each change: what is settled is in the ledger within half a second.
let seen, due = 0, fetching = false;
async function refresh(figures) {
  if (figures["settled"] !== seen) due = 2;
  seen = figures["settled"];
  if (!follow?.checked || !due || fetching || document.hidden) return;
  fetching = true;
  due--;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const list = page.getElementById("request-list");
    localize(list);
    document.getElementById("request-list").replaceWith(document.adoptNode(list));
  } finally {
    fetching = false;
  }
}

if (document.querySelector("[data-live], #follow")) {
  let source;
  const open = () => {
    source = new EventSource("/live");
    source.onmessage = (event) => {
      const message = JSON.parse(event.data);
      show(message.figures);
      refresh(message.figures);
      document.dispatchEvent(new CustomEvent("live", { detail: message }));
    };
  };
  // a page in the background asks for nothing
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source?.close(), (source = undefined);
    else if (!source) open();
  });
  if (!document.hidden) open();
}
