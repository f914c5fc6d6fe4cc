// A picture or files from the clipboard go the same way as dropped ones.
document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files;
  const input = document.querySelector("#files input[type=file]");
  if (!files?.length || !input || event.target.closest("input:not([type=file]), textarea")) return;
  event.preventDefault();
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// What Gradio leaves out: its drop zone has another name than it shows, which confuses those who speak to their computer;
// and what scrolls sideways in the card can't be scrolled from the keyboard.
new MutationObserver(() => {
  const zone = document.querySelector("#files button[aria-dropeffect]");
  const shown = zone?.innerText.replace(/\s+/g, " ").trim();
  if (shown && zone.getAttribute("aria-label") !== shown) zone.setAttribute("aria-label", shown);
  for (const wide of document.querySelectorAll("#card :is(pre, table):not([tabindex])")) wide.tabIndex = 0;
}).observe(document.documentElement, { childList: true, subtree: true });
