// Times in the reader's zone, and figures that change by the second.
for (const time of document.querySelectorAll("time[datetime]"))
  time.textContent = new Date(time.dateTime).toLocaleString();
for (const base of document.querySelectorAll("[data-origin]"))
  base.textContent = base.textContent.replace("ORIGIN", location.origin);
if (document.querySelector("[data-live]")) {
  const events = new EventSource("/live");
  events.onmessage = (event) => {
    const figures = JSON.parse(event.data);
    for (const place of document.querySelectorAll("[data-live]"))
      if (place.dataset.live in figures) place.textContent = figures[place.dataset.live];
  };
}
