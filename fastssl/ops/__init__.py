"""One folder per operator; its name finds its kernels, its tests and its benchmark."""
