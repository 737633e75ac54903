"""Reading and preparation of corpora: manifest, media, splits, noise."""
