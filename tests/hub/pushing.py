"""A process that publishes one run to one repository after another, as it is told on its standard input.

One line of JSON in: `repo`, and what else `publish` takes. One line of JSON out: `done`, `refused` or `defect`. It logs
all that huggingface_hub and the HTTP library would ever log, so that a test can look for the token there.
"""

import json
import logging
import sys
import traceback

from huggingface_hub.utils import logging as hub_logging

from oct_hf.hub.patience import Patience
from oct_hf.hub.publish import PublishError, publish

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
hub_logging.set_verbosity_debug()
for line in sys.stdin:
    asked = json.loads(line)
    tries, stall_s = asked.pop("tries", 3), asked.pop("stall_s", 60.0)
    patience = Patience(tries, first_wait_s=0.01, longest_wait_s=1.5, stall_s=stall_s)
    try:
        done = publish(**asked, patience=patience)
        said = {"done": done.commit, "tag": done.tag, "url": done.url}
    except PublishError as error:
        said = {"refused": str(error)}
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
    except Exception:
        said = {"defect": traceback.format_exc()}
    print(json.dumps(said), flush=True)
