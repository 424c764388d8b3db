"use strict";

const SHOWN = 5; // likeliest classes of each picture
const NAMED = 20; // classes in the head of the page
const TRIES = 5; // of a picture that the server has no room for yet

const find = (name) => document.getElementById(name);
let side = 32;

async function tellModel() {
  const facts = await (await fetch("model")).json();
  side = facts.image_shape[0];
  find("model").textContent = `Network ${facts.model}, run ${facts.run}, step ${facts.step}, sees ${side} × ${side} pixels`;
  const more = facts.classes.length - NAMED;
  find("classes").textContent = `It knows ${facts.classes.slice(0, NAMED).join(", ")}${more > 0 ? ` and ${more} more` : ""}.`;
  find("classes").title = facts.classes.join(", ");
}

// Pictures go one after the other: the newest answer stands on top, and the server's room is for others, too.
let last = Promise.resolve();
function look(files) {
  for (const file of files) last = last.then(() => lookAt(file));
}

async function lookAt(file) {
  const item = find("answer").content.cloneNode(true).firstElementChild;
  find("answers").prepend(item);
  const label = item.querySelector(".label");
  label.textContent = "…";
  show(item, file);
  try {
    const { status, said } = await ask(file);
    if (status !== 200) throw new Error(said.error);
    label.textContent = said.class;
    item.querySelector("dl").append(...said.top.flatMap(row));
  } catch (error) {
    item.classList.add("wrong");
    label.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
  }
}

async function ask(file) {
  for (let tried = 1; ; tried++) {
    const reply = await fetch(`predict?top=${SHOWN}`, { method: "POST", body: file });
    if (reply.status !== 503 || tried === TRIES) return { status: reply.status, said: await reply.json() };
    await new Promise((resume) => setTimeout(resume, 1000 * Number(reply.headers.get("retry-after") || 1)));
  }
}

function row(entry) {
  const name = document.createElement("dt");
  name.textContent = name.title = entry.class;
  const bar = document.createElement("progress");
  bar.value = entry.probability;
  bar.setAttribute("aria-hidden", "true");
  const held = document.createElement("dd");
  held.append(bar);
  const share = document.createElement("dd");
  share.className = "share";
  share.textContent = `${(100 * entry.probability).toFixed(1)} %`;
  return [name, held, share];
}

// The picture, and on request the central square as small as the network gets it.
async function show(item, file) {
  const figure = item.querySelector("figure");
  const caption = item.querySelector("figcaption");
  caption.textContent = file.name || "pasted picture";
  const image = item.querySelector("img");
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    image.remove(); // the server says what is wrong with it
    return;
  }
  const canvas = item.querySelector("canvas");
  canvas.width = canvas.height = side;
  const short = Math.min(image.naturalWidth, image.naturalHeight);
  const [left, top] = [(image.naturalWidth - short) / 2, (image.naturalHeight - short) / 2];
  const brush = canvas.getContext("2d");
  brush.fillStyle = "white"; // behind what is transparent
  brush.fillRect(0, 0, side, side);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(image, left, top, short, short, 0, 0, side, side);
  const button = document.createElement("button");
  button.type = "button";
  const tell = () => (button.textContent = figure.classList.contains("small") ? "show the whole" : "show what it sees");
  button.onclick = () => {
    figure.classList.toggle("small");
    tell();
  };
  tell();
  caption.append(document.createElement("br"), button);
}

find("files").addEventListener("change", (event) => {
  look(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", (event) => look(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  look(event.dataTransfer.files);
});

find("curl").textContent = `curl --data-binary @photo.jpg ${location.origin}/predict`;
tellModel().catch(() => (find("model").textContent = "The server does not answer."));
