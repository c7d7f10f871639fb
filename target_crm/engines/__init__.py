"""One adapter per SQL engine: what it does differently. `base.EngineAdapter` serves an unknown engine."""
