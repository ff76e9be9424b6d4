// As much of an API server as an agent asks for: every review is allowed, a watch goes on for ever, an upgrade echoes.
// What it is asked stands in the file of the last argument, a line of JSON each.
import { createServer } from 'node:https';
import { appendFileSync, readFileSync } from 'node:fs';
const [port, cert, key, asked] = process.argv.slice(2);
const note = (req, body) => {
  const { 'impersonate-user': user, 'impersonate-group': group, authorization } = req.headers;
  appendFileSync(asked, JSON.stringify({ method: req.method, url: req.url, user, group, authorization, body }) + '\n');
};
const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (req, res) => {
  let body = '';
  req.on('data', (part) => { body += part; });
  req.on('end', () => {
    note(req, body);
    res.setHeader('Content-Type', 'application/json');
    const url = new URL(req.url, 'https://x');
    if (url.searchParams.has('watch')) return res.write('{"type":"BOOKMARK","object":{}}\n');
    if (url.pathname.endsWith('accessreviews')) return res.end('{"status":{"allowed":true}}');
    if (url.pathname === '/version') return res.end('{"gitVersion":"v1.32.0"}');
    res.end('{"kind":"Status","status":"Success"}');
  });
});
server.on('upgrade', (req, socket, head) => {
  note(req, '');
  socket.on('error', () => socket.destroy());
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ' + req.headers.upgrade + '\r\n\r\n');
  socket.write(head);
  socket.pipe(socket);
});
server.listen(Number(port), '127.0.0.1');
