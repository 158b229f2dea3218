"""Compare the renders of chat templates with those of transformers.

    python tools/template_parity.py --peer-python /path/to/venv/bin/python [--write] [FOLDER]

The peer's environment holds `transformers`, which runs in a process of its own, with the clock stopped at the same
moment. Every template (*.jinja) of FOLDER (default: ../shared/data/templates) renders every conversation of
`tests/template_chats.py`; texts must be equal byte for byte, and where transformers fails, so must edgellm. `--write`
puts SHA-256 sums of the peer's renders into `tests/template_sums.json`, which the tests compare with.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from template_chats import CHATS, NOW, TOKENS  # noqa: E402

SUMS = ROOT / "tests" / "template_sums.json"
FAILS = "fails"

# Runs in the peer's environment: {"templates", "chats", "tokens", "now"} on stdin, the renders to stdout.
PEER = """
import datetime, json, sys
import transformers
from transformers.utils import chat_template_utils as utils
job = json.load(sys.stdin)
class Stopped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromisoformat(job["now"])
utils.datetime = Stopped
out = {}
for name, text in job["templates"].items():
    out[name] = {}
    for chat, options in job["chats"].items():
        options = dict(options)
        messages = options.pop("messages")
        try:
            made, _ = utils.render_jinja_template([messages], chat_template=text, **options, **job["tokens"])
            out[name][chat] = made[0]
        except Exception as e:
            out[name][chat] = None
print("RESULT" + json.dumps([transformers.__version__, out]))
"""


def ask_peer(python: str, templates: dict[str, str]) -> tuple[str, dict[str, dict[str, str | None]]]:
    """transformers' version and its renders; None where it fails."""
    job = {"templates": templates, "chats": CHATS, "tokens": TOKENS, "now": NOW.isoformat()}
    done = subprocess.run([python, "-c", PEER], input=json.dumps(job), capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
    if line is None:
        raise SystemExit(f"transformers could not be asked:\n{done.stderr[-2000:]}")
    return json.loads(line[6:])


def render(text: str, options: dict[str, Any]) -> str | None:
    """edgellm's render with the clock stopped; None where it fails."""
    from edgellm import EdgeLLMError
    from edgellm.template import ChatTemplate, sandbox

    try:
        with mock.patch.object(sandbox, "datetime") as clock:
            clock.now.return_value = NOW
            return str(ChatTemplate(text, **TOKENS).render(**options))
    except EdgeLLMError:
        return None


def sum_of(text: str | None) -> str:
    return FAILS if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "templates")
    parser.add_argument("--peer-python", required=True, help="interpreter that has transformers")
    parser.add_argument("--write", action="store_true", help=f"write {SUMS.relative_to(ROOT)}")
    args = parser.parse_args()
    templates = {path.name: path.read_text(encoding="utf-8") for path in sorted(args.folder.glob("*.jinja"))}
    if not templates:
        raise SystemExit(f"{args.folder}: there are no templates (*.jinja)")
    version, theirs = ask_peer(args.peer_python, templates)
    print(f"| conversation | equal to transformers {version} | both refuse | different |\n|---|---|---|---|")
    different = 0
    for chat, options in CHATS.items():
        pairs = {name: (render(text, options), theirs[name][chat]) for name, text in templates.items()}
        wrong = [name for name, (ours, peer) in pairs.items() if ours != peer]
        refused = sum(ours is None and peer is None for ours, peer in pairs.values())
        print(f"| {chat} | {len(pairs) - len(wrong) - refused} | {refused} | {', '.join(wrong) or 0} |")
        different += len(wrong)
    total = len(templates) * len(CHATS)
    print(f"\n{len(templates)} templates x {len(CHATS)} conversations: {total - different} of {total} the same")
    if args.write:
        sums = {name: {chat: sum_of(text) for chat, text in made.items()} for name, made in theirs.items()}
        SUMS.write_text(json.dumps({"transformers": version, "sums": sums}, indent=0) + "\n", encoding="utf-8")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
