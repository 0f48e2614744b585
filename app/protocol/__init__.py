"""The wire contract, pure: messages and codecs, the sans-IO session, commands, events, channels, codes.

Whatever a client can see (a byte, a field, a type, a number) is named here and nowhere else.
"""
