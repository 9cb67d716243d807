"use strict";
// Numbers as people read them. What is unknown is a dash, never a 0.

const UNKNOWN = "\u2013";
const SPACE = "\u00a0";

const known = (value) => value !== null && value !== undefined;

/** Three digits at most, as few as say it. */
function short(number) {
  const digits = number >= 100 ? 0 : number >= 10 ? 1 : 2;
  return String(Number(number.toFixed(digits)));
}

/** 1024-based, as everywhere in emuV. */
function sized(value) {
  const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let step = 0;
  while (value >= 1000 && step < names.length - 1) {
    value /= 1024;
    step += 1;
  }
  return [short(value), names[step]];
}

function bytes(value) {
  return known(value) ? sized(value).join(SPACE) : UNKNOWN;
}

/** "3.2 of 6 GiB": the unit is said once where it is one. */
function bytesOf(used, most) {
  if (!known(used) || !known(most)) return bytes(used);
  if (most === 0) return used === 0 ? "none" : `${bytes(used)} of none`;
  const [part, partUnit] = sized(used);
  const [whole, unit] = sized(most);
  return used === 0 || partUnit === unit ? `${part} of ${whole}${SPACE}${unit}` : `${bytes(used)} of ${bytes(most)}`;
}

const speed = (value) => (known(value) ? `${bytes(value)}/s` : UNKNOWN);
const percent = (value) => (known(value) ? `${short(value)}${SPACE}%` : UNKNOWN);

function count(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1000) return short(value);
  return value < 1e6 ? `${short(value / 1e3)}k` : `${short(value / 1e6)}M`;
}

function clock(millis) {
  return new Date(millis).toLocaleTimeString(undefined, { hour12: false });
}

/** Makes an element with a class and a text. Texts are only ever texts. */
function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (known(text)) element.textContent = text;
  return element;
}

/** Sets a text where it differs: what is read aloud or selected is left alone. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** A bar of parts, each `{ className, share }` with shares of 1. Beside it stands what it shows, so it is for the eye only. */
class Meter {
  constructor() {
    this.element = svg("svg", { class: "meter", "aria-hidden": "true" });
    this.element.append(svg("rect", { class: "back", width: "100%", height: "100%" }));
  }

  update(parts) {
    while (this.element.childElementCount > parts.length + 1) this.element.lastChild.remove();
    while (this.element.childElementCount < parts.length + 1) this.element.append(svg("rect", { height: "100%" }));
    let from = 0;
    parts.forEach(({ className, share }, index) => {
      const width = Math.max(0, Math.min(share, 1 - from));
      const rect = this.element.children[index + 1];
      rect.setAttribute("class", className);
      rect.setAttribute("x", `${(from * 100).toFixed(2)}%`);
      rect.setAttribute("width", `${(width * 100).toFixed(2)}%`);
      from += width;
    });
  }
}
