MathJax.Hub.Config({
  messageStyle: "none",
  showMathMenu: false,
  SVG: {
    scale: 95,
    // Of the width before the scale.
    linebreaks: { automatic: true, width: "95% container" },
    undefinedFamily: "sans-serif"
  }
});

// A cell is as wide as what stands in it: no formula is broken there.
MathJax.Hub.Register.StartupHook("SVG Jax Ready", () => {
  const svg = MathJax.OutputJax.SVG, translate = svg.Translate;
  svg.Process = svg.Translate = function(script, state) {
    const formula = script.MathJax.elementJax;
    if (formula && script.closest("td, th")) {
      formula.SVG.lineWidth = svg.BIGDIMEN;
    }
    return translate.call(this, script, state);
  };
});
