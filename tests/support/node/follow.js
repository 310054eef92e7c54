// Follows a subscription with the official client, over every disconnect: node follow.js URL TOKEN SUBSCRIPTION prints the
// id and number of each notification, and each acknowledgement.
import { io } from "socket.io-client";
const [url, token, subscription] = process.argv.slice(2);
const print = (what) => console.log(JSON.stringify(what));
let last = "0-1";
const socket = io(url, { auth: { token }, transports: ["websocket"], reconnectionDelay: 100, reconnectionDelayMax: 500 });
const subscribe = () =>
  socket.emit("subscribe", { ...JSON.parse(subscription), after: last }, (answer) => {
    print({ answer });
    if (!answer.ok) setTimeout(subscribe, 500);
  });
socket.on("connect", subscribe);
socket.on("disconnect", (reason) => reason === "io server disconnect" && socket.connect());
socket.onAny((event, body) => {
  if (!body.id) return;
  last = body.id;
  print({ event, id: body.id, number: body.number });
});
