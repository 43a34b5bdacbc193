"""The local runtime: many chats on one model, each forward pass shared, nothing computed twice.

What it does, from a request to its tokens: `scheduler` decides what runs in the next step, `runner` makes one forward
pass of it, `sampler` and `stopping` choose tokens and ends, `cache` keeps keys and values for later prompts, `worker`
owns the thread. `generator` is the loop over them.
"""
