// The official Socket.IO client: node listen.js URL OPTIONS SUBSCRIPTIONS prints what it hears, one JSON array a line.
import { io } from "socket.io-client";

const [url, options, subscriptions] = process.argv.slice(2);
const say = (...words) => console.log(JSON.stringify(words));
const socket = io(url, { reconnection: false, ...JSON.parse(options) });

socket.on("connect", () => {
  say("connect", socket.io.engine.transport.name);
  for (const wanted of JSON.parse(subscriptions)) {
    socket.emit("subscribe", wanted, (answer) => say("answer", answer));
  }
});
socket.on("connect_error", (error) => {
  say("connect_error", error.message, String(error.context?.responseText ?? ""));
  process.exit();
});
socket.on("disconnect", (reason) => {
  say("disconnect", reason);
  process.exit();
});
socket.onAny((event, payload) => say("event", event, payload));
