"""What a line that begins with "/" does in `longsight chat`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import get_args

from longsight.chat.messages import Thinking
from longsight.cli.chat_session import Session
from longsight.engine import InvalidRequestError

HELP = """\
/reset            begin another conversation
/system [TEXT]    instructions that stand before the conversation; without TEXT: none
/thinking [MODE]  adaptive (the model decides), enabled or disabled; without MODE: says which
/save FILE        write the conversation to a new file, as JSON messages
/help             this list
/exit             leave; so does Ctrl-D

Enter sends. A line that ends with \\ goes on in the next one, and so does everything between two lines of \"\"\".
Ctrl-C stops an answer. A message that begins with / is written with two: //."""
COMMANDS = ("/help", "/reset", "/system", "/thinking", "/save", "/exit")


class Leave(Exception):
    """The user has had enough."""


def obey(line: str, session: Session) -> str:
    """Do what the line says; what there is to tell about it. Raises InvalidRequestError and Leave."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    match command:
        case "/help":
            return HELP
        case "/exit" | "/quit":
            raise Leave
        case "/reset":
            session.messages.clear()
            return "the conversation begins anew"
        case "/system":
            session.system = rest
            return "the system message is set" if rest else "there is no system message"
        case "/thinking":
            return _thinking(session, rest)
        case "/save":
            return _save(session, rest)
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    instead = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
    raise InvalidRequestError(f"there is no command {command}{instead}")


def _thinking(session: Session, mode: str) -> str:
    if mode and mode not in get_args(Thinking):
        raise InvalidRequestError(f"thinking is {mode!r}; it must be one of {', '.join(get_args(Thinking))}")
    session.thinking = mode or session.thinking  # type: ignore[assignment]  # one of them, as was just checked
    return f"thinking is {session.thinking}"


def _save(session: Session, name: str) -> str:
    if not name:
        raise InvalidRequestError("/save needs the name of a file, as /save conversation.json")
    messages = session.conversation()
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            json.dump(messages, file, indent=2, ensure_ascii=False)
            file.write("\n")
    except FileExistsError:
        raise InvalidRequestError(f"{name} exists already; /save writes a new file") from None
    except OSError as error:
        raise InvalidRequestError(f"{name} cannot be written: {error.strerror}") from error
    return f"{len(messages)} messages are in {name}"
