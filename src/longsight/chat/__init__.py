"""Messages and what models write in answer: thinking, text and tool calls in MiniMax-M3's own markup."""
