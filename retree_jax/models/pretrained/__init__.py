"""Published networks whose weights are read from files: VGG19, InceptionV3."""
