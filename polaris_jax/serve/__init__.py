"""An HTTP server with the API that clients speak, over one `Sampler`.

`worker` owns the sampler in a thread of its own. `app` takes requests, `wishes` checks them,
`running` follows each of them to its end, `answers` writes what clients read, `weights` brings new
weights, `server` runs all of it. `service` is what they share.
"""
