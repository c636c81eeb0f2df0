"""The original's web app: `Hello world!`, the name taken from $PROVIDER."""

import os

from flask import Flask

app = Flask(__name__)


@app.route("/")
def hello():
    return f"Hello {os.environ.get('PROVIDER', 'world')}!"
