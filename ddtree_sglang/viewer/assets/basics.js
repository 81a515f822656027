"use strict";
// Draws what page_data.py chose. All text goes in as text nodes, so a token is never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CHAR = 7.9, ROW = 40, NODE = 33, GAP = 34, LONGEST = 18;
const MOST_NODES = 600; // drawn at once; more would make a step slow
const state = { chosen: data.rounds.map((_, place) => place), at: 0, request: -1, tables: false, near: false };

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children) if (child !== null) node.append(child);
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const word = (token) => data.tokens[token];
const percent = (value) => (value >= 0.0995 ? (100 * value).toFixed(0) : (100 * value).toPrecision(2)) + " %";
const round = () => data.rounds[state.chosen[state.at]];
const walkable = (part) => (part.limit === null ? part.parents.length : Math.min(part.limit, part.parents.length));
