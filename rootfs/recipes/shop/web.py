import http.server, signal, socket, subprocess, threading

ends = threading.Event()

def query(sql):
    command = ["psql", "--host=db", "--username=postgres", "--no-psqlrc", "-Atc", sql]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=5).stdout

def cache(*words):
    """One command of Redis', and the first line of its answer, or what that is the length of."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
    with socket.create_connection(("cache", 6379), 5) as connection:
        connection.sendall(request.encode())
        with connection.makefile("rb") as answer:
            first = answer.readline().decode().strip()
            if first.startswith("-"):
                raise OSError(first)
            if not first.startswith("$"):
                return first[1:]
            return None if first == "$-1" else answer.read(int(first[1:])).decode()

def goods():
    """From the cache, else from the database."""
    found = cache("GET", "goods")
    if found is None:
        found = query("select name, price from goods order by name")
        cache("SET", "goods", found, "EX", "10")
    return found

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            if self.path == "/healthz":
                query("select 1")
                text = cache("PING")
            else:
                text = f"{goods()}visitor {cache('INCR', 'visitors')}\n"
            self.answer(200, text)
        except (OSError, subprocess.SubprocessError) as error:
            self.answer(503, f"{error}\n")

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if ends.is_set():  # the last answer on a connection that is kept
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False  # what is under way is answered before the end

server = Server(("0.0.0.0", 8000), Handler)

def end(*_):
    ends.set()
    threading.Thread(target=server.shutdown).start()

signal.signal(signal.SIGTERM, end)
server.serve_forever()
server.server_close()
