// The review page: one item at a time, decisions kept in the browser and saved as a file. Everything
// that is shown of an item becomes text, never markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const store = "srpo-review-" + data.digest;
  let state = { reviewer: "", decisions: {} };
  let at = 0;
  let bare = false; // pictures of this item were shown
  let open = false; // what is closed of it was opened

  function restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(store));
      if (kept && kept.decisions) state = kept;
    } catch (error) { /* a browser that keeps nothing for files: saving still works */ }
  }

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(state));
    } catch (error) { /* as above */ }
    tell();
  }

  function make(tag, text, attributes) {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  }

  const item = () => data.items[at];
  const decided = () => state.decisions[item().key] || {};

  function change(values) {
    state.decisions[item().key] = { ...decided(), ...values };
    keep();
  }

  function decide(word) {
    if (word === "edit") {
      change({ decision: "edit", edits: decided().edits || {} });
      show();
      const first = document.querySelector("#item textarea.field");
      if (first) first.focus();
      return;
    }
    const entry = { ...decided(), decision: word };
    // To accept what was changed is to accept the change.
    if (word === "accept" && Object.keys(entry.edits || {}).length) entry.decision = "edit";
    else delete entry.edits;
    state.decisions[item().key] = entry;
    keep();
    go(1);
  }

  // What a field holds now: steps are fields with a number.
  function edited(name, index, value) {
    const edits = { ...(decided().edits || {}) };
    const now = edits[name] === undefined ? item()[name] : edits[name];
    edits[name] = index === null ? value : now.map((text, i) => (i === index ? value : text));
    if (JSON.stringify(edits[name]) === JSON.stringify(item()[name])) delete edits[name];
    change({ edits });
  }

  function field(title, name, index) {
    const was = index === null ? item()[name] : item()[name][index];
    const edits = decided().edits || {};
    const is = edits[name] === undefined ? was : index === null ? edits[name] : edits[name][index];
    const label = make("label", title);
    const area = make("textarea", "", { class: "field", "data-field": name, rows: 2 });
    if (index !== null) area.setAttribute("data-step", index);
    area.value = is;
    area.readOnly = decided().decision !== "edit";
    area.classList.toggle("changed", is !== was);
    area.addEventListener("input", () => {
      edited(name, index, area.value);
      area.classList.toggle("changed", area.value !== was);
    });
    label.append(area);
    return label;
  }

  function behind(title, inside) {
    const details = make("details", "", { class: "behind unsafe" });
    details.open = open;
    const summary = make("summary", title);
    // Not the event "toggle": that comes later, when the item may have been shown anew.
    summary.addEventListener("click", () => { open = !details.open; });
    details.append(summary, inside);
    return details;
  }

  function choice(words, key, label) {
    const group = make("div", "", { class: "tools", role: "group", "aria-label": label });
    group.append(make("span", label));
    for (const [value, said] of words) {
      const button = make("button", said, { "data-choice": value });
      const pressed = String(decided()[key]) === String(value);
      button.setAttribute("aria-pressed", pressed);
      button.addEventListener("click", () => {
        if (key === "decision") decide(value);
        else {
          change({ [key]: value });
          show();
        }
      });
      group.append(button);
    }
    return group;
  }

  function pictures() {
    const side = make("div", "", { class: "ask" });
    item().images.forEach((name) => {
      const shown = data.pictures[name];
      if (!shown || !shown.uri) {
        side.append(make("div", (shown && shown.problem) || "no picture", { class: "nopicture" }));
        return;
      }
      const button = make("button", "", { class: "picture", title: "show or veil (p)" });
      button.append(make("img", "", { src: shown.uri, alt: "picture of the question" }));
      button.classList.toggle("veiled", !bare);
      button.addEventListener("click", () => {
        bare = button.classList.contains("veiled");
        button.classList.toggle("veiled");
      });
      side.append(button);
    });
    side.append(make("p", item().facts.filter(Boolean).join(" · "), { class: "facts" }));
    return side;
  }

  function words() {
    const said = make("div", "", { class: "said" });
    if (data.kind === "labels") {
      said.append(make("p", item().question, { class: "question text" }));
      said.append(behind("path and reply, not judged here", make("div", item().text, { class: "text" })));
    } else {
      said.append(field("question", "question", null));
      item().steps.forEach((_, i) => said.append(field("step " + (i + 1), "steps", i)));
      if (item().reply) said.append(field("reply", "reply", null));
      if (item().unsafe_reply !== null) {
        said.append(behind("unsafe reply", field("unsafe reply", "unsafe_reply", null)));
      }
    }
    said.append(choice(data.choices, "decision", "decision"));
    if (data.kind === "records") {
      const grades = (first) => [1, 2, 3].map((n) => [n, n + " (" + (first + n) + ")"]);
      said.append(choice(grades(0), "difficulty", "difficulty"));
      said.append(choice(grades(3), "informative", "informative"));
    }
    const label = make("label", "note (n)");
    const note = make("textarea", "", { id: "note", maxlength: 4000, rows: 1 });
    note.value = decided().note || "";
    note.addEventListener("input", () => change({ note: note.value }));
    label.append(note);
    said.append(label);
    return said;
  }

  function show() {
    const card = make("article", "", { class: "card review", "data-key": item().key });
    card.append(pictures(), words());
    byId("item").replaceChildren(card);
    tell();
  }

  function tell() {
    const counts = {};
    Object.values(state.decisions).forEach((each) => {
      if (each.decision) counts[each.decision] = (counts[each.decision] || 0) + 1;
    });
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    const each = Object.entries(counts).map(([word, n]) => n + " " + word);
    byId("where").textContent = at + 1 + " of " + data.items.length;
    byId("progress").textContent = [total + " decided", ...each].join(", ");
  }

  // Only what is decided; an edit that changes nothing accepts.
  function decisions() {
    const found = {};
    for (const [key, each] of Object.entries(state.decisions)) {
      if (!each.decision) continue;
      const entry = { ...each };
      if (entry.edits && !Object.keys(entry.edits).length) delete entry.edits;
      if (entry.decision === "edit" && !entry.edits) entry.decision = "accept";
      found[key] = entry;
    }
    return found;
  }

  function save() {
    const reviewer = byId("reviewer").value.trim();
    if (!reviewer) {
      byId("progress").textContent = "Write your name first: decisions are saved under it.";
      byId("reviewer").focus();
      return;
    }
    const file = { format: data.format, review: data.digest, reviewer, decisions: decisions() };
    const link = make("a", "", {
      href: URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" })),
      download: "decisions-" + reviewer.replace(/[^\w.-]+/g, "-") + ".json",
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function load(event) {
    const file = event.target.files[0];
    if (!file) return;
    try {
      const read = JSON.parse(await file.text());
      if (read.format !== data.format || read.review !== data.digest) throw new Error();
      state = { reviewer: String(read.reviewer || ""), decisions: read.decisions || {} };
      byId("reviewer").value = state.reviewer;
      keep();
      show();
    } catch (error) {
      byId("progress").textContent = "This file is about another page, and was not read.";
    }
  }

  function go(step) {
    at = Math.min(data.items.length - 1, Math.max(0, at + step));
    bare = open = false;
    show();
  }

  const press = (query) => () => {
    const found = document.querySelector(query);
    if (found) found.click();
  };
  const keys = {
    j: () => go(1),
    k: () => go(-1),
    s: save,
    p: () => document.querySelectorAll(".picture").forEach((each) => each.click()),
    o: press("#item details > summary"),
    n: () => byId("note").focus(),
  };
  data.choices.forEach(([word, said]) => { keys[said.slice(-2, -1)] = () => decide(word); });
  if (data.kind === "records") {
    ["1", "2", "3"].forEach((n) => {
      keys[n] = press('[aria-label="difficulty"] [data-choice="' + n + '"]');
      keys[String(3 + Number(n))] = press('[aria-label="informative"] [data-choice="' + n + '"]');
    });
  }
  document.addEventListener("keydown", (event) => {
    const typing = ["TEXTAREA", "INPUT"].includes(event.target.tagName) && !event.target.readOnly;
    if (event.key === "Escape") document.activeElement.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  restore();
  byId("reviewer").value = state.reviewer;
  byId("reviewer").addEventListener("input", (event) => {
    state.reviewer = event.target.value;
    keep();
  });
  byId("save").addEventListener("click", save);
  byId("load").addEventListener("change", load);
  byId("back").addEventListener("click", () => go(-1));
  byId("on").addEventListener("click", () => go(1));
  at = Math.max(0, data.items.findIndex((each) => !(state.decisions[each.key] || {}).decision));
  show();
})();
