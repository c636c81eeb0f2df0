const http = require("http");
const server = http.createServer((request, response) => response.end("Hello from Node\n"));
server.listen(process.env.PORT);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
