"""How the site is built: python -m tox run -e docs."""

import os
import pathlib
import shutil
import sys

os.environ["KERAS_BACKEND"] = "jax"  # the figures are drawn with it
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / name) for name in ("docs", "examples", "benchmarks")]

import figures
import keras_docstrings
import programs

import keras_smoothl1

project = "keras-smoothl1"
author = "The keras-smoothl1 authors"
html_show_copyright = False
version = release = keras_smoothl1.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["interactive", "generated"]
nitpicky = True

html_theme = "furo"
html_title = f"keras-smoothl1 {version}"
html_static_path = [
    "static",
    "generated/static",
    "interactive/fit.css",
    "interactive/fit.js",
]
(HERE / "generated/static").mkdir(parents=True, exist_ok=True)
html_css_files = ["site.css"]
html_copy_source = False
pygments_dark_style = "github-dark"
highlight_language = "text"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#9a3412",
        "color-brand-content": "#9a3412",
    },
    "dark_css_variables": {
        "color-brand-primary": "#fdba74",
        "color-brand-content": "#fdba74",
    },
}

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings are written as Keras writes them, where `x` is code.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

# Shipped with the site, so that it works offline.
SCRIPTS = {
    "mathjax.js": "mathjax/es5/tex-svg.js",
    "mathjax.license.txt": "mathjax/LICENSE",
    "jsxgraph.js": "jsxgraph/distrib/jsxgraphcore.js",
    "jsxgraph.css": "jsxgraph/distrib/jsxgraph.css",
    "jsxgraph.license.txt": "jsxgraph/distrib/LICENSE.MIT",
}
mathjax_path = "mathjax.js"

# With --tag pages_only the examples are shown and not run: the tests run them, too.
RUN_EXAMPLES = not tags.has("pages_only")  # noqa: F821, which Sphinx defines

sphinx_gallery_conf = {
    # Its header is GALLERY_HEADER.txt: README.md would be found before an .rst file.
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(flight_delays|five_losses|boxes|images|missing_targets"
    r"|custom_loops|changing_beta|retinanet)\.py$",
    "ignore_pattern": r"\b(command_line|compare_weights|digit_boxes|display"
    r"|flights|noisy_targets)\.py$",
    "reset_argv": "programs.options_of_example",
    "plot_gallery": RUN_EXAMPLES,
    "abort_on_example_error": True,
    "within_subsection_order": "programs.Order",
    "default_thumb_file": str(HERE / "generated" / "losses.png"),
    "notebook_extensions": set(),  # they would lack the modules beside the examples
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1,
}


def prepare(app):
    modules, generated = HERE / "interactive" / "node_modules", HERE / "generated"
    for name, path in SCRIPTS.items():
        if not (modules / path).is_file():
            raise SystemExit(
                f"{modules / path} is missing. Install what the pages ship with: "
                f"npm ci --prefix {HERE / 'interactive'}"
            )
        shutil.copy(modules / path, generated / "static" / name)
    figures.draw_all(generated)
    if RUN_EXAMPLES:
        programs.run_all(generated)
    else:
        programs.leave_out(generated)


def add_scripts_of_figure(app, pagename, templatename, context, doctree):
    if pagename == "try_it":
        app.add_css_file("jsxgraph.css")
        app.add_css_file("fit.css")
        app.add_js_file("jsxgraph.js", loading_method="defer")
        app.add_js_file("fit.js", loading_method="defer")


def setup(app):
    app.connect("builder-inited", prepare, priority=100)
    app.connect("html-page-context", add_scripts_of_figure)
    app.connect("autodoc-process-docstring", keras_docstrings.to_rst, priority=100)
