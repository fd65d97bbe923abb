MathJax.Hub.Config({
  messageStyle: "none",
  showMathMenu: false,
  SVG: {
    scale: 95,
    linebreaks: { automatic: true, width: "container" },
    undefinedFamily: "sans-serif"
  }
});
