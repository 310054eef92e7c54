// Subscribes to a device with the official client and prints each event as a JSON line.
import { io } from "socket.io-client";
const [url, token, deviceUuid] = process.argv.slice(2);
const socket = io(url, { auth: { token }, transports: ["websocket"] });
const print = (event, body) => console.log(JSON.stringify({ event, body }));
socket.onAny(print);
socket.on("connect_error", (error) => print("connect_error", error.message));
socket.on("connect", () => socket.emit("subscribe", { deviceUuid }, (answer) => print("subscribed", answer)));
