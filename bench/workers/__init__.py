"""Programs that a bench runs in a process of their own, because they are judged by their peak memory."""
