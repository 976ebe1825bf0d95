// The admin's page: live figures, invitations, guidelines and disagreements.

import { $, newKey, notice, page, send } from "./page.js";

const SECONDS = 4;
let disagreements = null;

async function refresh() {
  if (document.hidden) return;
  try {
    const now = await send("/admin/live");
    if (!$("#figures").contains(document.activeElement)) $("#figures").innerHTML = now.html; // cleaned by the server
    if (now.disagreements !== disagreements && !$(".disagreement[open]")) $("#disagreements").innerHTML = now.disagreements;
    disagreements = now.disagreements;
    $("#saved").textContent = "Live";
  } catch (error) {
    $("#saved").textContent = error.status ? error.message : "The server cannot be reached";
  }
}

async function act(path, body) {
  try {
    const answer = await send(path, body);
    notice("");
    return answer;
  } catch (error) {
    notice(error.message || "The server cannot be reached; try again.");
  }
}

$("#invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await act("/admin/invite", Object.fromEntries(new FormData(event.target)));
  if (!answer) return;
  $("#link").hidden = false;
  $("#link code").textContent = answer.link;
  event.target.reset();
  refresh();
});

$("#guide").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await act("/admin/guidelines", { text: $("#guide-text").value });
  if (answer) notice(`Saved as version ${answer.version}.`);
});

page.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.act === "dismiss") notice("");
  if (button.dataset.act === "copy") navigator.clipboard?.writeText($("#link code").textContent);
  if (button.dataset.revoke && confirm("Revoke this link? Whoever has it loses access; the votes stay.")) {
    await act("/admin/revoke", { annotator: Number(button.dataset.revoke) });
    button.blur();
    refresh();
  }
  if (button.dataset.adjudicate) {
    const task = button.closest(".disagreement");
    const saved = await act("/admin/adjudicate", { task: Number(task.dataset.task), choice: button.dataset.adjudicate, key: newKey() });
    if (saved) task.remove();
    refresh();
  }
});

setInterval(refresh, SECONDS * 1000);
refresh();
