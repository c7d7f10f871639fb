// Draw the charts again with tooltips. Without scripts, and on paper, the page shows the drawings that it contains.
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const phone = matchMedia("(max-width: 760px)");
// `ast` evaluates expressions without eval, which the page's Content-Security-Policy forbids.
const options = {
  mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
  tooltip: { disableDefaultStyle: true },
};
function draw() {
  const size = phone.matches ? "narrow" : "wide";
  document.querySelectorAll(".drawing").forEach((drawing, place) => {
    const box = drawing.querySelector("." + size);
    if (box.dataset.drawn) return;
    box.dataset.drawn = "started";
    vegaEmbed(box.querySelector(".live"), specifications[place][size], options).then(
      () => { box.dataset.drawn = "done"; },
      error => console.error(error),
    );
  });
}
phone.addEventListener("change", draw);
draw();
