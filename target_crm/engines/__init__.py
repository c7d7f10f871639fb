"""One adapter per SQL engine, with everything that is different on this engine. Unknown engines use the defaults."""
