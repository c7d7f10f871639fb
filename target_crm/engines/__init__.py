"""One adapter per SQL engine, with the code that is specific to this engine. Unknown engines use the defaults."""
