// Preview of the chosen file, drop and paste, and that a computation runs. Forms work without it.
"use strict";

const form = document.querySelector("form");
if (form) {
  const drop = form.querySelector(".drop");
  const [input, shown, line] = ["input", "img", "p"].map((name) => drop.querySelector(name));
  const found = document.querySelector(".found");
  const busy = document.querySelector(".busy");
  line.hidden = false;

  const preview = () => {
    const [file] = input.files;
    if (!file) return;
    URL.revokeObjectURL(shown.src);
    const mib = file.size / 2 ** 20;
    const tooLarge = mib > Number(input.dataset.mib);
    line.textContent = `${file.name}, ${mib.toFixed(mib < 0.1 ? 2 : 1)} MiB`;
    input.setCustomValidity(tooLarge ? `a picture may have ${input.dataset.mib} MiB` : "");
    input.reportValidity();
    shown.className = "";
    shown.hidden = false;
    shown.src = URL.createObjectURL(file);
    found.classList.add("stale");
  };
  const take = (event, files) => {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    if (!picture) return;
    event.preventDefault();
    const chosen = new DataTransfer();
    chosen.items.add(picture);
    input.files = chosen.files;
    preview();
  };
  const rest = () => {
    busy.hidden = true;
    document.body.removeAttribute("aria-busy");
    for (const button of form.querySelectorAll("button[data-busy]")) {
      button.disabled = false;
      button.removeAttribute("data-busy");
    }
  };

  input.addEventListener("change", preview);
  shown.addEventListener("error", () => {
    shown.hidden = true;
    line.textContent += ", which this browser can't preview";
  });
  addEventListener("paste", (event) => take(event, event.clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", () => drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    drop.classList.remove("over");
    take(event, event.dataTransfer.files);
    event.preventDefault();
  });
  form.addEventListener("submit", () => {
    const start = Date.now();
    document.body.setAttribute("aria-busy", "true");
    found.classList.add("stale");
    busy.hidden = false;
    busy.scrollIntoView({ block: "nearest" });
    const timer = setInterval(() => {
      if (busy.hidden) clearInterval(timer);
      busy.querySelector("b").textContent = Math.round((Date.now() - start) / 1000);
    }, 1000);
    // Later: a disabled button would not be sent.
    setTimeout(() => {
      for (const button of form.querySelectorAll("button:enabled")) {
        button.disabled = true;
        button.setAttribute("data-busy", "");
      }
    });
  });
  // The browser may show the page as it was left.
  addEventListener("pageshow", (event) => {
    if (event.persisted) rest();
    preview();
  });
}
