// What both pages of the demo share: colors of workers, the log of what happens, the chat, and figures.
"use strict";
const EVERY = 200;  // milliseconds between two numbered messages
const MARKS = {kill: "✕", deploy: "↻", interface: "⇄"};  // of what happens to processes
const HUES = [190, 262, 30, 150, 320, 80, 230, 350];
const $ = (id) => document.getElementById(id);
let name = `Tab ${Math.random().toString(36).slice(2, 5).toUpperCase()}`;

// Sockets

// Opens a WebSocket, which calls receive for each message, and again a second after its end.
function openSocket(path, receive, again) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.onmessage = ({data}) => receive(data);
  socket.addEventListener("close", () => setTimeout(again, 1000));
  return socket;
}

// Processes

const hues = new Map();
function hue(pid) {
  if (!hues.has(pid)) hues.set(pid, HUES[hues.size % HUES.length]);
  return hues.get(pid);
}

function style(variable) { return getComputedStyle(document.documentElement).getPropertyValue(variable); }
function color(of) { return `oklch(${style("--bar")} ${of})`; }

function drawProcesses(workers, interfaceServer, ours) {
  $("workers").replaceChildren(...[...workers, {pid: interfaceServer}].map(({pid, version, leaving}) => {
    const row = document.createElement("li");
    row.className = `num ${leaving ? "leaving" : ""} ${pid === ours ? "ours" : ""}`;
    row.textContent = `${pid} · ${version ? `version ${version}` : "interface server"}`;
    return row;
  }));
}

function note(kind, text) {
  const row = document.createElement("li"), time = document.createElement("time"), sign = document.createElement("i");
  row.className = kind;
  time.textContent = new Date().toLocaleTimeString([], {hour12: false});
  time.className = "num";
  sign.textContent = {...MARKS, start: "+", drop: "!"}[kind] ?? "";
  row.append(time, sign, text);
  $("log").prepend(row);
  while ($("log").childElementCount > 12) $("log").lastElementChild.remove();
}

// Chat

function said(who, text = "") {
  $("said").querySelector(".empty")?.remove();
  const row = document.createElement("li");
  if (who === name) row.className = "mine";
  else row.append(Object.assign(document.createElement("b"), {textContent: who}));
  row.append(text);
  $("said").append(row);
  while ($("said").childElementCount > 200) $("said").firstElementChild.remove();
  row.scrollIntoView({block: "nearest"});
}

// Calls send with each text that is entered. It returns whether it could send the text.
function onEntered(send) {
  document.querySelector("form").onsubmit = (submit) => {
    submit.preventDefault();
    const input = submit.target.querySelector("input"), text = input.value.trim();
    if (text && send(text)) input.value = "";
  };
}

// Figures

const seconds = (wait) => wait < 1000 ? `${Math.round(wait)} ms` : `${(wait / 1000).toFixed(1)} s`;

function drawFigures(opened, drops, longest, figures, faults) {
  const up = opened ? Math.floor((performance.now() - opened) / 1000) : 0;
  const parts = [Math.floor(up / 3600), Math.floor(up / 60) % 60, up % 60];
  if (!parts[0]) parts.shift();
  $("open").textContent = parts.map((part, index) => index ? String(part).padStart(2, "0") : part).join(":");
  $("state").textContent = opened ? "Connected" : drops ? "Reconnecting…" : "Connecting…";
  for (const [id, count] of Object.entries({...figures, ...faults})) $(id).textContent = count.toLocaleString("en");
  for (const [id, count] of Object.entries(faults)) $(id).classList.toggle("some", count > 0);
  $("longest").textContent = longest ? seconds(longest) : "–";
}
