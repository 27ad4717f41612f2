"""Files of weights, and the models put together from them; knows `models`, and is used by
`training`, `inference` and `weights_convert`."""
