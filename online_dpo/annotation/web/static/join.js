// Exchanges the token of an invitation for a session. The token leaves the address at once, and is sent by the button.
import { post } from "./net.js";

const button = document.getElementById("join");
const status = document.getElementById("status");

// A reload keeps the state of the history entry, though the address has the token no more.
const token = decodeURIComponent(location.hash.slice(1)) || history.state?.token || "";
history.replaceState({ token }, "", location.pathname);
document.getElementById(token ? "with-link" : "without-link").hidden = false;

button.addEventListener("click", async () => {
  button.disabled = true;
  status.textContent = "Signing in…";
  try {
    const reply = await post("/api/join", { token });
    history.replaceState(null, "", location.pathname);
    location.replace(reply.next);
  } catch (failure) {
    status.textContent = failure.message;
    button.disabled = false;
  }
});
button.focus();
// Another link in the same tab changes what is behind the # alone, and loads nothing.
addEventListener("hashchange", () => location.reload());
