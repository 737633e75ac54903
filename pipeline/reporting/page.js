// Brushes on the axes of the parallel coordinates: lines outside a brush fade. Drag along an axis; click to reset.
(() => {
  const svg = document.getElementById("parallel"), kept = document.getElementById("kept");
  const lines = [...svg.querySelectorAll("polyline")];
  const brushes = new Map();
  const bounds = svg.dataset;
  const share = (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return (bounds.bottom - place.y) / (bounds.bottom - bounds.top);
  };
  const show = () => {
    const names = [];
    for (const line of lines) {
      const positions = line.dataset.positions.split(" ").map(Number);
      const inside = [...brushes].every(([axis, [low, high]]) => positions[axis] >= low && positions[axis] <= high);
      line.classList.toggle("faded", !inside);
      if (inside) names.push(line.dataset.name);
    }
    kept.textContent = brushes.size ? `${names.length} of ${lines.length} points: ${names.join("; ")}` : "";
  };
  svg.querySelectorAll(".axis").forEach((axis, number) => {
    const brush = axis.querySelector(".brush");
    let from = null;
    axis.addEventListener("pointerdown", (event) => {
      from = share(event);
      axis.setPointerCapture(event.pointerId);
      event.preventDefault();
      brushes.delete(number);
      brush.setAttribute("height", 0);
      show();
    });
    axis.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const [low, high] = [from, share(event)].sort((a, b) => a - b);
      const size = bounds.bottom - bounds.top;
      brush.setAttribute("y", bounds.bottom - high * size);
      brush.setAttribute("height", (high - low) * size);
      brushes.set(number, [low, high]);
      show();
    });
    axis.addEventListener("pointerup", () => { from = null; });
  });
})();
