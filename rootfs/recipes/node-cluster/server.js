const cluster = require("cluster");
const http = require("http");
const os = require("os");

if (cluster.isPrimary) {
    const workers = os.availableParallelism();
    for (let i = 0; i < workers; i++) cluster.fork();
    process.on("SIGTERM", () => cluster.disconnect(() => process.exit(0)));
} else {
    http.createServer((request, response) => response.end(`Hello from worker ${cluster.worker.id}\n`)).listen(process.env.PORT);
}
