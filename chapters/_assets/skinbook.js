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
