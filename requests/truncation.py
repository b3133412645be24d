def truncated(messages, *, excess_tokens, tokens_of):
    return None
