// Conveniences only: the page is complete without this file.
"use strict";

for (const block of document.querySelectorAll("pre")) {
  const text = block.textContent;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}

const filter = document.createElement("input");
filter.type = "search";
filter.placeholder = "Filter calls";
filter.setAttribute("aria-label", "Filter calls");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const entry of document.querySelectorAll("nav li")) {
    entry.hidden = !entry.textContent.toLowerCase().includes(wanted);
  }
});
document.querySelector("nav .brand").after(filter);
