"""The local runtime: many chats on one model, each forward pass shared, nothing computed twice.

What it does, from a request to its tokens: `scheduler` decides what runs in the next step, `runner` makes one forward
pass of it, `sampler` chooses tokens, `cache` keeps keys and values for later prompts. `generator` is the loop over
them; `kani_lite.engines.worker` owns the thread that it runs on.
"""
