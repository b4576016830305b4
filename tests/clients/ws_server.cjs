// An echo server by the npm package `ws`: ws_server.cjs PATH_OF_WS [CERTIFICATE KEY]
//
// It prints its URL, offers compression, and pings often; "bye" makes it close with 1001, and "large" brings a message in
// fragments.

const fs = require("fs");
const { WebSocketServer } = require(process.argv[2]);
const [certificate, key] = process.argv.slice(3);

const tls = certificate && { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
const http = tls ? require("https").createServer(tls) : require("http").createServer();
const server = new WebSocketServer({ server: http, perMessageDeflate: true });

server.on("connection", (socket) => {
  const pings = setInterval(() => socket.ping(), 50);
  socket.on("close", () => clearInterval(pings));
  socket.on("message", (data, binary) => {
    const text = data.toString();
    if (text === "bye") socket.close(1001, "as you wish");
    else if (text === "large") {
      socket.send("in ", { fin: false });
      socket.send("three ", { fin: false });
      socket.send("fragments", { fin: true });
    } else socket.send(data, { binary });
  });
});
http.listen(0, "127.0.0.1", () => {
  const { port } = http.address();
  console.log(`listening on ${tls ? `wss://localhost:${port}/` : `ws://127.0.0.1:${port}/`}`);
});
