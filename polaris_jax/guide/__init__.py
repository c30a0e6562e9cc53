"""A first look at a model and its data, and a config that suits both: `polaris init`."""
