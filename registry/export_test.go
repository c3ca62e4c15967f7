package registry

// WithStep returns cfg with a function that is called before each operation on disk.
func WithStep(cfg Config, step func(op, path string)) Config {
	cfg.step = step
	return cfg
}
