"""embed.py MODULE.wasm PAGE.js: the module as a script, since a page opened
from a file may not fetch one; with no module, an empty one."""

import base64
import pathlib
import sys

module = pathlib.Path(sys.argv[1])
data = module.read_bytes() if module.exists() else b""
text = base64.b64encode(data).decode()
pathlib.Path(sys.argv[2]).write_text(f'const answersModule = "{text}";\n')
