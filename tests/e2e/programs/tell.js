// For each HOST PORT: what node's net says, one after the other, and both names of the connection.
const net = require("net");
const words = process.argv.slice(2);

function next() {
  if (words.length < 2) return;
  const [host, port] = words.splice(0, 2);
  const socket = net.connect({ host, port: Number(port) });
  socket.on("connect", () => {
    console.log(host, "connected", socket.remoteAddress, socket.remotePort, socket.localAddress);
    socket.destroy();
    next();
  });
  socket.on("error", (error) => {
    console.log(host, error.code, error.address, error.port);
    next();
  });
}
next();
