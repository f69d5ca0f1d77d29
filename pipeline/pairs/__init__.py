"""From caption–URL rows to kept image–text pairs: download, index, features, noise filter."""
