// The visible texts whose contrast with what is behind them is below 4.5, by WCAG 2.2's formula.
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 1;
const pen = canvas.getContext("2d", { willReadFrequently: true });

function over(color, below) {
  pen.fillStyle = `rgb(${below.join(" ")})`;
  pen.fillRect(0, 0, 1, 1);
  pen.fillStyle = color;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function behind(element) {
  if (element === null) return [255, 255, 255];
  return over(getComputedStyle(element).backgroundColor, behind(element.parentElement));
}

function luminance(color) {
  const [red, green, blue] = color.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(element, color) {
  const back = behind(element);
  const [light, dark] = [luminance(over(color, back)), luminance(back)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}

const faint = [];
function check(element, color, text) {
  const found = contrast(element, color);
  if (found < 4.5) faint.push(`${found.toFixed(2)} ${element.className}: ${text.slice(0, 40)}`);
}

for (const element of document.querySelectorAll("body *")) {
  if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  if (element.matches(":disabled, .disabled *") || element.closest("label:has(:disabled)")) continue;
  const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
  const text = own.map((node) => node.textContent.trim()).join(" ").trim();
  if (text && !element.matches("script, style")) {
    check(element, getComputedStyle(element).color, text);
  }
  if (element.matches("input, textarea")) {
    if (element.value) check(element, getComputedStyle(element).color, element.value);
    else if (element.placeholder) {
      check(element, getComputedStyle(element, "::placeholder").color, element.placeholder);
    }
  }
}
return faint;
