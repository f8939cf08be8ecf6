// The figure of try_it.md. The two sliders hold the state; the rest is computed from it.
(() => {
  "use strict";

  // These two must match keras_smoothl1.smooth_l1_loss and its slope. tests/browser
  // compares them.
  const loss = (d, beta) =>
    Math.abs(d) < beta ? d ** 2 / (2 * beta) : Math.abs(d) - beta / 2;
  const slope = (d, beta) => (Math.abs(d) < beta ? d / beta : Math.sign(d));

  const mean = (numbers) => numbers.reduce((a, b) => a + b) / numbers.length;

  function root(increasing, low, high) {
    // 60 bisections give all digits of a double.
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (increasing(middle) < 0) low = middle;
      else high = middle;
    }
    return high;
  }

  // The mean loss is convex. It is also convex as a function of the rise, with the best
  // intercept for each rise. So both derivatives increase, and bisection finds their
  // zeros for every beta. Newton's method would meet singular matrices for small beta.
  function smoothL1Line(points, beta) {
    const interceptAt = (rise) => {
      const residuals = points.map(([x, y]) => y - rise * x);
      const pull = (intercept) => mean(residuals.map((r) => slope(intercept - r, beta)));
      return root(pull, Math.min(...residuals), Math.max(...residuals));
    };
    const torque = (rise) => {
      const intercept = interceptAt(rise);
      return mean(points.map(([x, y]) => x * slope(intercept + rise * x - y, beta)));
    };
    const steeperThanAnyTwoPoints = 100;
    const rise = root(torque, -steeperThanAnyTwoPoints, steeperThanAnyTwoPoints);
    return { rise, intercept: interceptAt(rise) };
  }

  function leastSquaresLine(points) {
    const meanX = mean(points.map(([x]) => x));
    const meanY = mean(points.map(([, y]) => y));
    const covariance = mean(points.map(([x, y]) => (x - meanX) * (y - meanY)));
    const rise = covariance / mean(points.map(([x]) => (x - meanX) ** 2));
    return { rise, intercept: meanY - rise * meanX };
  }

  const at = (line, x) => line.intercept + line.rise * x;

  function study(line, lossOf, slopeOf, points, outlier) {
    const error = ([x, y]) => at(line, x) - y;
    const d = error(outlier);
    const meanLoss = mean(points.map((point) => lossOf(error(point))));
    return { ...line, d, loss: lossOf(d), slope: slopeOf(d), mean: meanLoss };
  }

  const figure = document.getElementById("fit");
  const data = JSON.parse(document.getElementById("try-it-points").textContent);
  const betaRange = document.getElementById("fit-beta");
  const outlierRange = document.getElementById("fit-outlier");

  function read() {
    // 50 steps multiply beta by 10. It is rounded to three digits, so that it is easy to
    // copy.
    const beta = Number((10 ** (betaRange.value / 50)).toPrecision(3));
    const outlier = [data.outlierX, Number(outlierRange.value)];
    const points = [...data.points, outlier];
    return {
      beta,
      outlier,
      smooth: study(
        smoothL1Line(points, beta),
        (d) => loss(d, beta),
        (d) => slope(d, beta),
        points,
        outlier,
      ),
      squares: study(
        leastSquaresLine(points),
        (d) => d ** 2 / 2,
        (d) => d,
        points,
        outlier,
      ),
    };
  }

  let now = read();

  // Colors and lines are defined in fit.css, so that they follow the theme.
  const look = (name, rest) => ({
    cssClass: `fit-${name}`,
    highlightCssClass: `fit-${name}`,
    highlight: false,
    transitionDuration: 0,
    fixed: true,
    withLabel: false,
    ...rest,
  });

  function createBoard(id, [left, top, right, bottom], axisNames) {
    const number = look("number", { display: "internal", fontSize: 12 });
    const axis = look("axis", {
      lastArrow: false,
      ticks: look("axis", {
        drawLabels: true,
        insertTicks: false,
        label: number,
        majorHeight: 6,
        minorTicks: 0,
        ticksDistance: 2,
      }),
    });
    const board = JXG.JSXGraph.initBoard(id, {
      axis: true,
      boundingBox: [left, top, right, bottom],
      defaultAxes: { x: axis, y: axis },
      keyboard: { enabled: false }, // the keyboard moves the sliders
      maxFrameRate: 1000, // at a lower rate, the last move before a release may be lost
      moveTarget: document.getElementById(id), // keeps the pointer captured
      pan: { enabled: false },
      showCopyright: false,
      showInfobox: false,
      showNavigation: false,
      zoom: { enabled: false },
    });
    // `side` is the position of the text: -1 left of the place, 0 on it, 1 right of it.
    const text = (words, place, side, [across, up]) => {
      const x = () => place()[0] + (side() * across) / board.unitX;
      const y = () => place()[1] + up / board.unitY;
      const anchorX = () => ["right", "middle", "left"][side() + 1];
      const rest = { anchorX, display: "internal", fontSize: 14 };
      return board.create("text", [x, y, words], look("text", rest));
    };
    text(axisNames[0], () => [right, 0], () => -1, [6, 12]);
    text(axisNames[1], () => [0, top], () => 1, [8, -12]);
    return {
      board,
      text,
      curve: (name, f, from, to) =>
        board.create("functiongraph", [f, from, to], look(name)),
      segment: (name, from, to) => board.create("segment", [from, to], look(name)),
      point: (name, place, rest) =>
        board.create("point", place, look(name, { size: 4, ...rest })),
      handle: (name, place, dragged) => {
        const precision = { touch: 20, mouse: 20, pen: 20 };
        const rest = { fixed: false, precision, size: 8 };
        const handle = board.create("point", place, look(`handle fit-${name}`, rest));
        // The point follows a pointer outside the plot until it is released.
        handle.on("down", (event) => event.target.setPointerCapture(event.pointerId));
        handle.on("drag", () => {
          dragged(handle);
          show();
        });
        return handle;
      },
    };
  }

  const width = 6; // of the loss plot, on each side
  const left = createBoard("fit-loss", [-6.6, 6.6, 6.6, -1.6], ["error d", ""]);
  const right = createBoard("fit-line", [-0.9, 15, 10.7, -4], ["x", "y"]);

  for (const sign of [-1, 1]) {
    const x = () => sign * now.beta;
    left.segment("bound", [x, 0], [x, () => Math.max(now.beta / 2, 1)]);
    left.point("mark", [x, () => now.beta / 2], { size: 3 });
  }
  left.curve("squares", (d) => d ** 2 / 2, -width, width);
  left.curve("slope", (d) => slope(d, now.beta), -width, width);
  left.curve("smooth", (d) => loss(d, now.beta), -width, width);
  left.text("beta", () => [now.beta, 0], () => 0, [0, -34]);

  const shownError = () => Math.min(Math.max(now.smooth.d, -width), width);
  const shownLoss = () => loss(shownError(), now.beta);
  left.point("outlier", [shownError, shownLoss]);
  left.point("outlier", [shownError, () => slope(shownError(), now.beta)]);
  left.text(
    () => (Math.abs(now.smooth.d) > width ? "outlier (off scale)" : "outlier"),
    () => [shownError(), shownLoss()],
    () => (now.smooth.d < 0 ? 1 : -1),
    [12, 0],
  );
  const betaHandle = left.handle("beta", [now.beta, 0], (handle) => {
    betaRange.value = 50 * Math.log10(Math.max(handle.X(), 1e-9));
  });

  for (const point of data.points) right.point("datum", point);
  right.curve("squares", (x) => at(now.squares, x), 0, 10.7);
  right.curve("smooth", (x) => at(now.smooth, x), 0, 10.7);
  right.text("outlier", () => now.outlier, () => -1, [26, 0]);
  const outlierHandle = right.handle("outlier", now.outlier, (handle) => {
    outlierRange.value = handle.Y();
  });

  // Values below 1e-6 are rounding errors.
  const digits = (x) =>
    (Math.abs(x) < 1e-6 ? "0" : x.toPrecision(4)).replace("-", "\u2212");

  function show() {
    now = read();
    betaHandle.setPosition(JXG.COORDS_BY_USER, [now.beta, 0]);
    outlierHandle.setPosition(JXG.COORDS_BY_USER, now.outlier);
    left.board.update();
    right.board.update();
    betaRange.setAttribute("aria-valuetext", now.beta);
    const numbers = { beta: now.beta, outlier: now.outlier[1] };
    for (const name of ["smooth", "squares"]) {
      for (const [key, x] of Object.entries(now[name])) numbers[`${name}.${key}`] = x;
    }
    for (const place of figure.querySelectorAll("[data-shows]")) {
      const number = numbers[place.dataset.shows];
      place.textContent = digits(number);
      place.dataset.value = number;
    }
  }

  betaRange.addEventListener("input", show);
  outlierRange.addEventListener("input", show);
  document.getElementById("fit-reset").addEventListener("click", () => {
    for (const range of [betaRange, outlierRange]) range.value = range.defaultValue;
    show();
  });
  figure.hidden = false;
  show();
})();
