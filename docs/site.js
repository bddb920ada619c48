// What the theme leaves out for screen readers and keyboards.
document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0; // wide tables scroll
});

// The buttons of a code block are no landmark of the page; the theme adds them when the block comes into view.
new MutationObserver(() => {
  for (const nav of document.querySelectorAll("nav.md-code__nav")) nav.setAttribute("role", "group");
}).observe(document.documentElement, { childList: true, subtree: true });
