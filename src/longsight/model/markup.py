"""The literals of MiniMax-M3's chat format. Source: the chat template published with the checkpoint."""

NAMESPACE = "]<]minimax[>["  # stands before every structural tag
THINK, END_THINK = "<mm:think>", "</mm:think>"
TURN, END_OF_TURN, DOCUMENT = "]~b]", "[e~[", "]~!b["
PADDING = "]!p~["
TURN_MARKERS = (TURN, END_OF_TURN, DOCUMENT)  # none of these belongs to an answer
