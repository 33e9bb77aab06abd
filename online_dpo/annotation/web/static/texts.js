// Shows texts, as they are or formatted. The formatted form comes from the server, which makes it from harmless elements.

const buttons = { text: document.getElementById("as-text"), markdown: document.getElementById("as-markdown") };
let form = localStorage.getItem("form"); // null: nobody has chosen; then chats are formatted and plain texts are not
let shown = null;

for (const [name, button] of Object.entries(buttons)) {
  button.addEventListener("click", () => {
    form = name;
    localStorage.setItem("form", name);
    if (shown) showTexts(shown);
  });
}

/** Fill in prompt and answers of a question. */
export function showTexts(question) {
  shown = question;
  const isChat = question.prompt[0].role !== null;
  const wanted = form ?? (isChat ? "markdown" : "text");
  for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === wanted));
  document.getElementById("prompt").replaceChildren(...question.prompt.map((part) => message(part, wanted)));
  for (const side of ["left", "right"]) {
    document.getElementById(side).replaceChildren(block(question[side], wanted));
  }
}

/** A name for the question that is shown: its texts are all that this page knows of it. */
export function nameOf(question) {
  const texts = JSON.stringify([question.prompt.map((part) => part.text), question.left.text, question.right.text]);
  let hash = 0;
  for (let place = 0; place < texts.length; place += 1) hash = (Math.imul(hash, 31) + texts.charCodeAt(place)) | 0;
  return `${texts.length}:${hash}`;
}

function message(part, wanted) {
  const content = block(part, wanted);
  if (part.role === null) return content;
  const box = document.createElement("div");
  box.className = "message";
  const role = document.createElement("h3");
  role.textContent = part.role;
  box.append(role, content);
  return box;
}

function block(part, wanted) {
  const element = document.createElement("div");
  element.dir = "auto";
  if (part.text === "") {
    element.className = "text quiet";
    element.textContent = "(empty)";
  } else if (wanted === "markdown" && part.markdown !== null) {
    element.className = "text formatted";
    element.innerHTML = part.markdown;
  } else {
    element.className = "text";
    element.textContent = part.text;
  }
  return element;
}
