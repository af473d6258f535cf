"""The quality study: the same data, tokens and size under several kinds of attention, with several seeds."""
