"""Reading, checking, registering, mapping and rendering data sets."""
