// A table or an output that scrolls by itself must be reachable with the keyboard.
window.addEventListener("load", () => {
  const mark = () => {
    for (const box of document.querySelectorAll("article table, article pre, article div.output")) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    }
  };
  mark();
  window.addEventListener("resize", mark);
});

// On paper nothing can be opened, and paper is white: whatever is folded is printed unfolded, and in light colours.
const page = document.documentElement.dataset;
const folded = [];
window.addEventListener("beforeprint", () => {
  for (const box of document.querySelectorAll("article details:not([open])")) {
    box.open = true;
    folded.push(box);
  }
  page.before = page.theme;
  page.theme = "light";
});
window.addEventListener("afterprint", () => {
  for (const box of folded.splice(0)) box.open = false;
  page.theme = page.before;
});
