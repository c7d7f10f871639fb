"""One adapter per SQL engine, with everything that this engine needs differently. Unknown engines use the defaults."""
