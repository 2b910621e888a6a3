"use strict";
// What the pointer shows, and the cost that the reader picks. All places are computed by Python; without this script the page stands.
(() => {
  const svgns = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.id = "tip"; tip.hidden = true; document.body.append(tip);

  const make = (name, attributes, parent) => {
    const made = document.createElementNS(svgns, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    parent.append(made);
    return made;
  };

  // The bars of drawing.architecture, small.
  const draw = (shape, row) => {
    const [, embed, blocks] = shape, widest = Math.max(embed, ...blocks.flatMap(b => b ? [b[1], b[2]] : [0]));
    const scale = 260 / widest, svg = document.createElementNS(svgns, "svg");
    svg.setAttribute("width", 264); svg.setAttribute("height", row * blocks.length + 2);
    blocks.forEach((block, at) => {
      const y = at * row + 1, bar = (row - 2) / 2;
      if (!block) return make("line", {class: "skipped", x1: 1, x2: embed * scale, y1: y + bar, y2: y + bar}, svg);
      const [heads, qkv, mlp] = block, third = qkv * scale / 3;
      make("rect", {class: "width", x: 1, y, width: embed * scale, height: row - 1}, svg);
      [..."qkv"].forEach((name, part) => make("rect", {class: name, x: 1 + part * third, y, width: third, height: bar}, svg));
      let cuts = ""; for (let cut = 1; cut < 3 * heads; cut++) cuts += `M${1 + third * cut / heads} ${y}v${bar}`;
      make("path", {class: "cut", d: cuts}, svg);
      make("rect", {class: "mlp", x: 1, y: y + bar + .5, width: mlp * scale, height: bar}, svg);
    });
    return svg;
  };

  const short = n => { for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (Math.abs(n) >= size) return (n / (letter == "k" ? 1e3 : size)).toPrecision(3) + " " + letter;
    return n >= 100 ? Math.round(n).toLocaleString("en") : +n.toPrecision(3) + ""; };

  const show = (event, content) => {
    tip.replaceChildren(...content); tip.hidden = false;
    const {width, height} = tip.getBoundingClientRect(), gap = 14;
    const x = event.clientX + gap + width > innerWidth ? event.clientX - gap - width : event.clientX + gap;
    const y = event.clientY + gap + height > innerHeight ? event.clientY - gap - height : event.clientY + gap;
    tip.style.left = Math.max(4, x) + "px"; tip.style.top = Math.max(4, y) + "px";
  };

  // `points` gives [x, y] of each point now, `tell` the nodes for the nearest one, `pin` what a click does.
  const follow = (svg, points, tell, pin) => {
    let cursor;
    const hide = () => { tip.hidden = true; cursor?.remove(); cursor = null; };
    const move = event => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let nearest = -1, least = Infinity;
      points().forEach(([x, y], index) => { const d = (x - at.x) ** 2 + (y - at.y) ** 2; if (d < least) { least = d; nearest = index; } });
      const unit = svg.viewBox.baseVal.width / svg.getBoundingClientRect().width;
      if (nearest < 0 || least > (32 * unit) ** 2) { hide(); return -1; }
      const [x, y] = points()[nearest];
      cursor ??= make("circle", {class: "cursor", r: 6 * unit}, svg);
      cursor.setAttribute("cx", x); cursor.setAttribute("cy", y);
      show(event, tell(nearest));
      return nearest;
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("click", event => { const nearest = move(event); if (pin && nearest >= 0) pin(nearest); });
  };

  for (const svg of document.querySelectorAll("svg[data-points]")) {
    const points = JSON.parse(svg.dataset.points);
    follow(svg, () => points, index => [points[index][2]]);
  }

  for (const box of document.querySelectorAll(".search")) {
    const data = JSON.parse(box.querySelector("script").textContent), svg = box.querySelector("svg.candidates");
    const dots = [...svg.querySelectorAll("circle")], pinned = box.querySelector(".pinned");
    let places = [];
    const pick = name => {
      const axis = data.axes[name];
      places = data.y.map((y, at) => [axis.x[at], y]);
      dots.forEach(dot => dot.setAttribute("cx", axis.x[dot.dataset.at]));
      svg.querySelector("g.x").innerHTML = axis.axis;
      svg.querySelector("g.bands").innerHTML = axis.bands;
      svg.querySelector("path.pareto").setAttribute("d", axis.pareto);
      svg.dataset.axis = name;
    };
    const words = one => {
      const costs = data.costs.map(([name, label]) => `${short(one[name])} ${label}`).join(", ");
      return `${one.top1.toFixed(2)} % top-1 in the supernet\n${costs}\npatch ${one.shape[0]}, width ${one.shape[1]}, `
        + `${one.shape[2].filter(Boolean).length} of ${one.shape[2].length} blocks\n${one.key}`
        + (one.generation ? `, generation ${one.generation}` : "");
    };
    for (const input of box.querySelectorAll("input")) input.addEventListener("change", () => pick(input.value));
    pick((box.querySelector("input:checked") ?? {value: Object.keys(data.axes)[0]}).value);
    follow(svg, () => places, at => [words(data.shown[at]), document.createElement("br"), draw(data.shown[at].shape, 9)], at => {
      const one = data.shown[at], text = document.createElement("pre");
      text.textContent = words(one) + "\n" + one.shape[2].map((block, number) => block
        ? `block ${number + 1}: ${block[0]} heads, q/k/v ${block[1]}, MLP ${block[2]}` : `block ${number + 1}: skipped`).join("\n");
      pinned.replaceChildren(text, draw(one.shape, 16));
    });
  }
})();
