// Leads names to this machine in a program that knows nothing of it, as a line of /etc/hosts does: loaded by
// `node --import`. MAPPED_NAMES holds the names, MAPPED_PORT stands for 443, which tests may not bind.
import net from "node:net";

const names = process.env.MAPPED_NAMES.split(" ");
const { connect } = net.Socket.prototype;

net.Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0];
  if (names.includes(options.host) && Number(options.port) === 443) {
    Object.assign(options, { host: "127.0.0.1", port: Number(process.env.MAPPED_PORT) });
  }
  return connect.apply(this, args);
};
