"""The data set `emoji`: small pictures of things in three drawing styles, with their names, and facts about flags.

`emoji_set` converts it, `packages` reads the npm packages with the pictures, `things` has the names. The tables:
`categories.toml` has a plain word for the kind of a thing, `countries.csv` the capital and the continent of a country.
"""
