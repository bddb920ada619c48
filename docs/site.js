// What the theme leaves out for screen readers and keyboards.
document$.subscribe(() => {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0; // wide tables scroll
});

// The buttons of each code block are a landmark of their own, and landmarks need names that differ. The theme adds them
// when the block comes into view.
new MutationObserver(() => {
  document.querySelectorAll("nav.md-code__nav").forEach((nav, number) => {
    if (nav.ariaLabel !== `Block ${number + 1}`) nav.ariaLabel = `Block ${number + 1}`;
  });
}).observe(document.documentElement, { childList: true, subtree: true });
