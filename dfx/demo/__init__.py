"""A local page to try models on one's own recordings; needs the extra ``demo``, which installs Gradio."""
