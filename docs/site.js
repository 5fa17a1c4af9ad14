// What the theme leaves out, for those who use a screen reader or a keyboard.
new MutationObserver(() => {
  // Each code block gets a landmark, and all of them have the same name.
  for (const nav of document.querySelectorAll("nav.md-code__nav")) nav.setAttribute("role", "presentation")
  // A wide table is scrolled with the keyboard once it has the focus.
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap"))
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0
}).observe(document.body, {childList: true, subtree: true})
