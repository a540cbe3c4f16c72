"""An output as a page: images, prompts and scores, to be opened from a disk or a bucket without a server."""
