// What is posted to a room is heard by everybody whose WebSocket is in it.
const room = new URL("/rooms/lobby", location);
const socket = new WebSocket(room.href.replace(/^http/, "ws"));
socket.onmessage = (event) => {
  const line = document.createElement("li");
  line.textContent = event.data;
  document.getElementById("heard").append(line);
};
document.getElementById("say").onsubmit = async (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  const body = JSON.stringify({ text: text.value });
  await fetch(room, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  text.value = "";
};
