"""How gunicorn serves app.py as a process that holds nothing: read by `--config`."""

import os

bind = f"0.0.0.0:{os.environ.get('PORT', '5000')}"
chdir = "/opt/webapp"

# One worker and its threads: three or four pids, far below the stack's limit.
workers = 1
worker_class = "gthread"
threads = 4

# The root is read-only and /tmp is the only place to write.
worker_tmp_dir = "/tmp"

# No control socket: nobody in there may tell the server what to do.
control_socket_disable = True

# Access lines go to stdout, the rest to stderr: lrpns collects both.
accesslog = "-"
