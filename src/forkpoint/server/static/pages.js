"use strict";

// While a run is going on, the page asks how the thread is doing, and shows what came of it.
const waiting = document.querySelector("[data-wait]");
if (waiting) {
  const look = async () => {
    try {
      const answer = await fetch(waiting.dataset.wait, { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== "busy") {
        location.reload();
        return;
      }
    } catch {
      // The server is away: ask again.
    }
    setTimeout(look, 1000);
  };
  setTimeout(look, 1000);
}

// A form is sent once, and says that it is on its way.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) {
      event.preventDefault();
      return;
    }
    form.dataset.sent = "yes";
    form.setAttribute("aria-busy", "true");
  });
}
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});

// The field for an input is there, and must be filled, where one is asked for.
for (const field of document.querySelectorAll("[data-input-of]")) {
  const kind = document.getElementById(field.dataset.inputOf);
  const show = () => {
    field.hidden = kind.value === "as-it-is" || kind.value === "only";
    field.querySelector("textarea").required = !field.hidden;
  };
  kind.addEventListener("change", show);
  show();
}
