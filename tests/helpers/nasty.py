"""Text that a terminal must not be sent as it is, and what is to be shown in its place."""

NASTY = "[x] [/x] [bold] :smile: \x1b[31m\x1b]0;title\x07 \r \x9b2J \u202eabc \udc80"
SHOWN = r"[x] [/x] [bold] :smile: \x1b[31m\x1b]0;title\x07 \r \x9b2J \u202eabc \udc80"
